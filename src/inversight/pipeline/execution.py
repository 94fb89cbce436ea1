"""The stages of one run, each written atomically and skipped if it is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from inversight.adaptation import adapt
from inversight.adaptation.collapse import LOW, class_entropy
from inversight.attacks import Attack, control, run_attack, write_reconstructions
from inversight.attacks.base import missing_classes
from inversight.attacks.control import control_truncation
from inversight.attacks.workload import cut_to
from inversight.core.console import Reporter
from inversight.core.errors import ConfigError, StageError
from inversight.core.run import Run, atomic_folder, write_json
from inversight.core.seeding import generator
from inversight.data import ImageSet, load_folder
from inversight.embeddings import Embedding, named_embedding
from inversight.embeddings.named import Use
from inversight.models.networks import FILE_NAME, SavedClassifier, load_classifier, save_classifier
from inversight.models.target import Access, Target, accuracy_on, describe_target, target_of
from inversight.models.training import rotation_task, train_classifier
from inversight.pipeline.budgets import BUDGET, CURVES, with_curves
from inversight.pipeline.evaluation import evaluate
from inversight.pipeline.gallery import gallery
from inversight.pipeline.gate import exceeded, gates
from inversight.pipeline.hidden_names import hidden_names
from inversight.pipeline.ledger import SIGNALS_FILE, exposure_table, hidden, join
from inversight.pipeline.outputs import write_report
from inversight.pipeline.plan import Plan
from inversight.pipeline.result import AuditResult
from inversight.pipeline.scored import (
    FILES,
    read_nearness,
    read_neighbour_distance,
    write_evaluation,
)
from inversight.pipeline.watching import FrechetToPublic, watched_features
from inversight.priors import Prior, SampleMonitor, StylePrior, train_prior
from inversight.priors.pivotal_tuning import describe_pivots
from inversight.priors.prior_file import PRIOR_FILE, few_images
from inversight.report import GalleryItem, load_report_data
from inversight.settings import ARMS, Training, prior_training

LEDGER = "samples.parquet"
LOW_TARGET_ACCURACY = 0.7
LOW_EVALUATOR_ACCURACY = 0.6


def execute(plan: Plan, run: Run, reporter: Reporter) -> AuditResult:
    """Run every stage of ``plan`` that is not done yet in ``run``.

    Raises:
        StageError: a stage failed; what is finished can be resumed.
    """
    return _Execution(plan, run, reporter).all()


class _Execution:
    """The stages of one run, each written atomically and skipped if it is there."""

    def __init__(self, plan: Plan, run: Run, reporter: Reporter) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.inputs = plan.inputs
        self.run = run
        self.reporter = reporter
        self.warnings: list[str] = list(plan.inputs.warnings)
        self.notes: list[str] = []
        self.queries: dict[str, int] = {}

    def all(self) -> AuditResult:
        target = self.target()
        evaluator = self.evaluator()
        public_network = self.public_network() if self.plan.needs_public_network else None
        given = self.prior(public_network)
        prior = self.adapted(given, target, public_network)
        for name, attack in self.plan.attacks.items():
            self.attack(name, attack, target, prior)
        reconstructions = self.collect()
        unguided = self.control(given, reconstructions) if self.inputs.holdout is None else None
        points = self.budget_points(target, prior) if self.settings.budget else []
        metrics, samples = self.scores(reconstructions, unguided, points, evaluator, public_network)
        samples = self.signals(samples, target)
        if points:
            metrics = self.budgets(metrics, points)
        self.run.record(warnings=self.warnings, notes=self.notes)
        self.report(reconstructions)
        self.run.record(finished=True)
        crossed = exceeded(gates(self.settings.fail_on), metrics)
        return AuditResult(self.run.path, metrics, samples, tuple(self.warnings), crossed)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.reporter.warn(text)

    def rng(self, stage: str) -> torch.Generator:
        return generator(self.settings.seed, stage)

    def stage(self, name: str, build: Callable[[Path], None], part: str | None = None) -> Path:
        """The folder of stage ``name``; ``part`` is what it is called where it differs."""
        kept = (
            f"what is finished is kept in {self.run.path}, and --resume goes on with these settings "
            "where there is more memory"
        )
        with self.plan.remedy(part or name, kept):
            return self.run.stage(name, build)

    def _train(
        self, stage: str, images: ImageSet, training: Training, file: str, folder: Path
    ) -> None:
        trained = train_classifier(
            images,
            training=training,
            image_shape=self.plan.shape,
            rng=self.rng(stage),
            progress=self.reporter.stage(stage),
            device=self.plan.device,
        )
        save_classifier(trained.classifier, folder / file)
        facts = {
            "epochs": trained.epochs,
            "train_accuracy": trained.train_accuracy,
            "validation_accuracy": trained.validation_accuracy,
        }
        write_json(folder / "facts.json", facts)

    def target(self) -> Target:
        """The model under audit, trained here if none was given."""
        target = self.inputs.target
        if target is None:
            folder = self.stage(
                "target",
                lambda f: self._train(
                    "target", self.inputs.private, self.settings.target_training, FILE_NAME, f
                ),
            )
            target = target_of(load_classifier(folder), "trained by this audit")
            self.notes.append(
                "No target was given: a small classifier was trained on the private images, so the "
                "result is about that classifier and not about a model of yours."
            )
        target = target.to(self.plan.device)
        accuracy = accuracy_on(target, self.inputs.private)
        if accuracy < LOW_TARGET_ACCURACY:
            self.warn(
                f"the target puts only {accuracy:.0%} of the private images in their class; usual "
                "causes: class order (--classes), normalisation (--mean / --std), input size "
                "(--size). An audit of a model that is called wrongly means nothing"
            )
        self.run.record(target={**describe_target(target), "private_accuracy": accuracy})
        return target

    def evaluator(self) -> Target:
        """The independent judge, trained here if none was given."""
        evaluator = self.inputs.evaluator
        if evaluator is None:
            training = self.settings.evaluator_training
            if self.inputs.target is None and (
                training.architecture == self.settings.target_training.architecture
            ):
                self.warn(
                    "evaluator_training.architecture is the target's own; an evaluator that is the "
                    "target's twin shares its mistakes"
                )
            folder = self.stage(
                "evaluator",
                lambda f: self._train("evaluator", self.inputs.private, training, FILE_NAME, f),
            )
            evaluator = target_of(load_classifier(folder), "trained by this audit")
        evaluator = evaluator.to(self.plan.device)
        facts = describe_target(evaluator)
        if self.inputs.holdout is not None:
            accuracy = accuracy_on(evaluator, self.inputs.holdout)
            facts["holdout_accuracy"] = accuracy
            if accuracy < LOW_EVALUATOR_ACCURACY:
                self.warn(
                    f"the evaluator puts only {accuracy:.0%} of the holdout in their class; an "
                    "evaluator that cannot classify real images cannot judge reconstructions, so "
                    "read accuracy and KNN distance with care"
                )
        else:
            facts["holdout_accuracy"] = None
            self.warn(
                "no holdout was given, so the evaluator could not be checked on images it never saw"
            )
        self.run.record(evaluator=facts)
        return evaluator

    def public_network(self) -> SavedClassifier:
        """A feature network that has seen the public images alone."""
        images = self.plan.public_at_work
        task = images if len(images.classes) > 1 else rotation_task(images)
        folder = self.stage(
            "public-network",
            lambda f: self._train(
                "public-network", task, self.settings.public_training, FILE_NAME, f
            ),
        )
        saved = load_classifier(folder)
        saved.module.to(self.plan.device)
        return saved

    def prior(self, public_network: SavedClassifier | None) -> Prior:
        """The generator of images like the public ones."""
        given = self.plan.given_prior
        if given is not None:
            self.notes.append(f"The prior was made before: {self.settings.prior}.")

            def copy(folder: Path) -> None:
                shutil.copyfile(given.file, folder / PRIOR_FILE)

            self.stage("prior", copy)
            return given.prior.to(self.plan.device)
        training = prior_training(self.settings)
        if self.plan.own_prior is not None or training is None:
            self.notes.append(
                "The prior is the user's own; it was used as it is, without adaptation."
            )
            if self.plan.own_prior is None:
                raise ConfigError("prior: none")
            return self.plan.own_prior

        def fill(folder: Path) -> None:
            train_prior(
                self.plan.public_for_prior.images,
                training=training,
                rng=self.rng("prior"),
                progress=self.reporter.stage("prior"),
                checkpoint=folder / "checkpoint.safetensors",
                device=self.plan.device,
                monitor=self.watch(folder, public_network),
            ).save(folder / PRIOR_FILE)
            (folder / "checkpoint.safetensors").unlink(missing_ok=True)

        folder = self.stage("prior", fill)
        return StylePrior.load(folder / PRIOR_FILE).to(self.plan.device)

    def watch(self, folder: Path, public_network: SavedClassifier | None) -> SampleMonitor:
        """Looks at a prior in training, with features that cost little beside it: see decisions.md."""
        name = "none"
        if public_network is not None:
            name = "public"
        elif self.settings.features == "pixel" or (
            self.settings.features == "inception" and self.plan.device.type != "cpu"
        ):
            name = self.settings.features
        size = self.plan.prior_shape[1]
        embedding = watched_features(name, size=size, public_network=public_network)
        if embedding is None:
            return SampleMonitor(folder)
        images = self.plan.public_for_prior.images
        return SampleMonitor(folder, FrechetToPublic(images, embedding, self.plan.device))

    def adapted(
        self, prior: Prior, target: Target, public_network: SavedClassifier | None
    ) -> Prior:
        """The prior fine-tuned against the target."""
        if not isinstance(prior, StylePrior):
            return prior
        if self.settings.adaptation.keeps_prior:
            self.notes.append("The prior was used as it is: adaptation.steps is 0.")
            return prior
        few = few_images(len(self.inputs.public))
        if few is not None and self.settings.private is not None:
            self.warn(few)
        size = self.plan.prior_shape[1]
        metric: Embedding | None = None
        if ARMS[self.settings.arm].natural_gradient:
            metric = named_embedding(
                self.settings.guidance_embedding,
                use="distance",
                role="--guidance-embedding",
                size=size,
                public_network=public_network,
                evaluator=None,
                working_size=max(64, size),
            )

        def fill(folder: Path) -> None:
            adapt(
                prior,
                target,
                self.plan.public_for_prior.images,
                arm=self.settings.arm,
                adaptation=self.settings.adaptation,
                training=prior.training,
                metric=metric,
                rng=self.rng("adaptation"),
                progress=self.reporter.stage("adaptation"),
                checkpoint=folder / "checkpoint.safetensors",
                monitor=self.watch(folder, public_network),
            ).save(folder / PRIOR_FILE)
            (folder / "checkpoint.safetensors").unlink(missing_ok=True)

        folder = self.stage("adaptation", fill)
        adapted = StylePrior.load(folder / PRIOR_FILE).to(self.plan.device)
        if self.settings.adaptation.pivots > 0:
            tuning = self.settings.adaptation.pivots_tuning
            self.notes.append(describe_pivots(adapted, tuning=tuning))
        if self.settings.arm != "vanilla":
            self._check_collapse(target, prior, adapted)
        if self.settings.arm != "vanilla" or adapted.pivots is not None:
            blind = [n for n, a in self.plan.attacks.items() if a.access is not Access.WHITE_BOX]
            if blind:
                self.notes.append(
                    f"{', '.join(blind)}: the attack itself had no gradients of the target, but the "
                    "prior was adapted with them; an attacker without them has --arm vanilla and no "
                    "adaptation.pivots."
                )
        return adapted

    def _check_collapse(self, target: Target, before: Prior, after: Prior) -> None:
        """Warn if the guidance has left fewer classes within the attack's reach."""
        was, now = (
            class_entropy(target, one, rng=self.rng("class-entropy")) for one in (before, after)
        )
        self.run.record(class_entropy={"prior": was, "adapted": now})
        if now < LOW * was:
            self.warn(
                f"the adapted prior has collapsed onto few classes (entropy of the target's mean "
                f"prediction {now:.2f} nats, {was:.2f} before): lower adaptation.weight, or take "
                "--arm balanced or --arm vanilla"
            )

    def attack(self, name: str, attack: Attack, target: Target, prior: Prior) -> None:
        """One attack's reconstructions as PNG files and latents."""
        labels = self.inputs.private.labels.unique(sorted=True)

        def fill(folder: Path) -> None:
            made = run_attack(
                attack,
                target,
                prior,
                labels,
                rng=self.rng(f"attack/{name}"),
                progress=self.reporter.stage(name),
            )
            write_reconstructions(folder, "images", made, classes=self.inputs.classes, name=name)
            classes = self.inputs.classes
            if self.settings.hash_ids:  # it is told in the report
                with hidden_names(self.run.path) as hide:
                    classes = tuple(map(hide, classes))
            missing = missing_classes(made, labels, classes)
            write_json(folder / "facts.json", {"queries": made.queries, "left_out": missing})

        file = self.stage(f"attack-{name}", fill, name) / "facts.json"
        if file.is_file():  # an earlier version's attack did not count
            facts = json.loads(file.read_text())
            self.queries[name] = facts["queries"]
            self.run.record(queries=self.queries)
            if facts.get("left_out"):
                self.warn(f"{name}: {facts['left_out']}")

    def budget_points(
        self, target: Target, prior: Prior
    ) -> list[tuple[str, int | None, Path | None]]:
        """Run each attack again within so many queries; return attack, budget and folder.

        The folder is None where the budget is too small for any attempt.
        """
        labels = self.inputs.private.labels.unique(sorted=True)
        points: list[tuple[str, int | None, Path | None]] = []
        for name, attack in self.plan.attacks.items():
            used = self.queries[name]
            for queries in self.settings.budget:
                less = cut_to(attack, queries, prior=prior, classes=len(labels), used=used)
                folder = None if less is None else self._cut(name, less, queries, target, prior)
                points.append((name, queries, folder))
            points.append((name, None, self.run.path / "stages" / f"attack-{name}"))
        return points

    def budgets(
        self,
        metrics: dict[str, dict[str, Any]],
        points: Sequence[tuple[str, int | None, Path | None]],
    ) -> dict[str, dict[str, Any]]:
        """Write budget.parquet: what each attack covers within so many queries, and as it was run.

        Returns ``metrics`` with the curves in them, as metrics.json has them then.
        """

        def fill(folder: Path) -> None:
            rows = [self._point(*point) for point in points]
            pd.DataFrame(rows).to_parquet(folder / BUDGET, index=False)
            write_json(folder / "metrics.json", with_curves(metrics, rows))

        folder = self.stage("budget", fill)
        self.run.publish(folder / BUDGET)
        self.run.publish(folder / "metrics.json")
        found: dict[str, dict[str, Any]] = json.loads((folder / "metrics.json").read_text())
        return found

    def _cut(self, name: str, attack: Attack, queries: int, target: Target, prior: Prior) -> Path:
        """The attack again with less of everything, held to ``queries`` in all."""
        labels = self.inputs.private.labels.unique(sorted=True)

        def fill(folder: Path) -> None:
            try:
                made = run_attack(
                    attack, target, prior, labels, rng=self.rng(f"attack/{name}"), limit=queries,
                    progress=self.reporter.stage(f"{name}, {queries:,} queries"),
                )  # fmt: skip
            except StageError as error:  # too little for a start
                write_json(folder / "facts.json", {"queries": None, "reason": str(error)})
                return
            write_reconstructions(folder, "images", made, classes=self.inputs.classes, name=name)
            write_json(folder / "facts.json", {"queries": made.queries})

        return self.stage(f"attack-{name}-within-{queries}", fill, name)

    def _point(self, name: str, queries: int | None, folder: Path | None) -> dict[str, Any]:
        """Return one row of budget.parquet."""
        row: dict[str, Any] = {"attack": name, "budget": queries, "queries": None, "reason": None}
        row |= {"reconstructions": 0}
        row |= dict.fromkeys(("covered", "ddcs_best", "ddcs_average", "nearest_distance"))
        if folder is None:
            return row | {"reason": "too few queries for one candidate of each class"}
        facts = json.loads((folder / "facts.json").read_text())
        if "reason" in facts:
            return row | {"reason": facts["reason"]}
        scores = self.run.path / "stages" / "scores"
        found = read_nearness(scores)[name if queries is None else folder.name]
        values = {key: one.value for key, one in found.items()}
        bounds = {
            f"{key}_{end}": getattr(found[key], end) for key in CURVES for end in ("low", "high")
        }
        reconstructions = found["covered"].extra["reconstructions"]
        return (
            row
            | values
            | bounds
            | {
                "queries": facts["queries"],
                "reconstructions": reconstructions,
            }
        )

    def images_of(self, folder: Path) -> ImageSet:
        """Return the reconstructions in a stage's folder."""
        images = load_folder(
            folder / "images", role="reconstructions", channels=self.inputs.channels
        )
        return images.relabel(self.inputs.classes, role="reconstructions")

    def collect(self) -> dict[str, ImageSet]:
        """Each attack's reconstructions; all of them together are in RUN/reconstructions."""

        def fill(folder: Path) -> None:
            for name in self.plan.attacks:
                source = self.run.path / "stages" / f"attack-{name}" / "images"
                for file in sorted(source.rglob("*.png")):
                    copy = folder / "reconstructions" / file.relative_to(source)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(file.read_bytes())

        folder = self.run.stage("reconstructions", fill)
        shown = self.run.path / "reconstructions"
        if not shown.is_dir():
            with atomic_folder(shown) as copy:
                shutil.copytree(folder / "reconstructions", copy, dirs_exist_ok=True)
        stages = self.run.path / "stages"
        return {name: self.images_of(stages / f"attack-{name}") for name in self.plan.attacks}

    def control(self, prior: Prior, reconstructions: dict[str, ImageSet]) -> ImageSet:
        """As many samples of the unadapted prior of each class as all attacks made, unguided."""
        labels = torch.cat([one.labels for one in reconstructions.values()])
        truncation = control_truncation(self.plan.attacks.values())

        def fill(folder: Path) -> None:
            made = control(
                prior, labels, rng=self.rng("control"), truncation=truncation,
                progress=self.reporter.stage("control"),
            )  # fmt: skip
            write_reconstructions(
                folder, "images", made, classes=self.inputs.classes, name="control"
            )

        folder = self.stage("control", fill)
        images = load_folder(folder / "images", role="control", channels=self.inputs.channels)
        return images.relabel(self.inputs.classes, role="control")

    def scores(
        self,
        reconstructions: dict[str, ImageSet],
        unguided: ImageSet | None,
        points: Sequence[tuple[str, int | None, Path | None]],
        evaluator: Target,
        public_network: SavedClassifier | None,
    ) -> tuple[dict[str, dict[str, Any]], pd.DataFrame]:
        """metrics.json and the tables, of each attack and of all together."""

        def fill(folder: Path) -> None:
            distance = self._scoring(
                self.settings.embedding, "distance", "--embedding", evaluator, public_network
            )
            features = self._scoring(
                self.settings.features, "features", "--features", evaluator, public_network
            )
            found = evaluate(
                self.inputs.private,
                reconstructions,
                distance=distance,
                features=features,
                evaluator=evaluator,
                holdout=self.inputs.holdout,
                control=unguided,
                distance_only={
                    stage.name: self.images_of(stage)
                    for _, queries, stage in points
                    if queries is not None and stage is not None and (stage / "images").is_dir()
                },
                neighbours=True,
                memory=self.settings.memory,
                seed=self.settings.seed,
                pairs=self.settings.pairs,
                fdr=self.settings.fdr,
                checkpoint=folder,
                device=self.plan.device,
                progress=self.reporter.stage("scores"),
            )
            if self.settings.hash_ids:
                with hidden_names(self.run.path) as hide:
                    write_evaluation(folder, found, hide=hide)
            else:
                write_evaluation(folder, found)

        folder = self.stage("scores", fill)
        for file in FILES:
            # The ledger is shown when the signals have joined it.
            if file != LEDGER and (folder / file).is_file():
                self.run.publish(folder / file)
        metrics = json.loads((folder / "metrics.json").read_text())
        return metrics, pd.read_parquet(folder / LEDGER)

    def signals(
        self,
        samples: pd.DataFrame,
        target: Target,
    ) -> pd.DataFrame:
        """What the target says of each private image, and its twins, joined to the ledger."""

        def fill(folder: Path) -> None:
            table = exposure_table(
                target,
                self.inputs.private,
                neighbour_distance=read_neighbour_distance(self.run.path / "stages" / "scores"),
                seen=self.settings.embedding == "evaluator",
                progress=self.reporter.stage("signals"),
            )
            if self.settings.hash_ids:
                with hidden_names(self.run.path) as hide:
                    table = hidden(table, hide)
            table.to_parquet(folder / SIGNALS_FILE, index=False)
            join(samples, table).to_parquet(folder / LEDGER, index=False)

        folder = self.stage("signals", fill)
        for file in (SIGNALS_FILE, LEDGER):
            self.run.publish(folder / file)
        return pd.read_parquet(folder / LEDGER)

    def _scoring(
        self,
        name: str,
        use: Use,
        role: str,
        evaluator: Target,
        public_network: SavedClassifier | None,
    ) -> Embedding:
        return named_embedding(
            name,
            use=use,
            role=role,
            size=self.inputs.private.size,
            public_network=public_network,
            evaluator=evaluator,
        )

    def report(self, reconstructions: dict[str, ImageSet]) -> None:
        """The report and the card, written anew each time: it is quick and shows every stage's time."""
        shown: tuple[GalleryItem, ...] = ()
        if self.settings.images != "none":
            shown = gallery(
                self.run.path,
                self.inputs.private,
                reconstructions,
                blurred=self.settings.images == "blurred",
                hashed=self.settings.hash_ids,
            )
        write_report(self.run.path, load_report_data(self.run.path, gallery=shown))
