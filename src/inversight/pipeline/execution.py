"""The stages of an audit in order, each kept in the run folder and skipped where it is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from inversight.attacks import Attack
from inversight.attacks.control import NAME as CONTROL
from inversight.attacks.workload import cut_to
from inversight.core.console import Log, Reporter
from inversight.core.errors import ConfigError, StageError
from inversight.core.run import Run, atomic_folder, hidden_names, write_json
from inversight.data import ImageSet
from inversight.embeddings import Embedding
from inversight.models.networks import SavedClassifier
from inversight.models.target import Access, Target, accuracy_on, describe_target, target_of
from inversight.pipeline.adapt import adaptation_stage, describe_adaptation, guidance_metric
from inversight.pipeline.attack import (
    PICTURES,
    AttackFacts,
    attack_stage,
    control_stage,
    move_pictures,
    pictures_of,
    read_pictures,
)
from inversight.pipeline.budget import BUDGET, Rerun, budget_stage
from inversight.pipeline.context import Context
from inversight.pipeline.evaluation import evaluate
from inversight.pipeline.plan import Plan
from inversight.pipeline.prior import monitor_of, prior_stage, warn_of_few
from inversight.pipeline.report import make_gallery, report_stage
from inversight.pipeline.result import AuditResult, crossed, thresholds
from inversight.pipeline.score import publish_scores, scoring_embeddings
from inversight.pipeline.scored import read_nearness, write_evaluation
from inversight.pipeline.signals import LEDGER, SIGNALS_FILE, signals_stage
from inversight.pipeline.train import PUBLIC_NETWORK, load_network, train_network, write_network
from inversight.priors import Prior, SampleMonitor, StylePrior
from inversight.priors.prior_file import PRIOR_FILE
from inversight.report import GalleryItem
from inversight.settings import ARMS, Training, prior_training

LOW_TARGET_ACCURACY = 0.7
LOW_EVALUATOR_ACCURACY = 0.6

Metrics = dict[str, dict[str, Any]]


def execute(plan: Plan, run: Run, reporter: Reporter) -> AuditResult:
    """Run every stage of ``plan`` that is not done yet in ``run``.

    Raises:
        StageError: a stage failed; what is finished can be resumed.
    """
    return _Audit(plan, run, Log(reporter, list(plan.inputs.warnings))).all()


def copy_stage(source: Path, run: Run, stage: str) -> None:
    """Copy a finished stage of the run in ``source``, an attack's images included, if it is there."""
    folder = source / "stages" / stage
    if not folder.is_dir() or run.folder(stage).is_dir():
        return
    with atomic_folder(run.folder(stage)) as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        if stage.startswith("attack-"):
            for file in pictures_of(source / PICTURES, stage.removeprefix("attack-")):
                place = copy / PICTURES / file.parent.name / file.name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)


class _Audit:
    """The stages of one run. A method runs its stage unless it is done, and returns its product."""

    def __init__(self, plan: Plan, run: Run, log: Log) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.inputs = plan.inputs
        self.labels = plan.inputs.private.labels.unique(sorted=True)
        self.run = run
        self.log = log
        self.context = Context(plan.settings.seed, plan.device, log)

    def all(self) -> AuditResult:
        """Run all stages in order."""
        run, plan = self.run, self.plan
        target = self.target()
        evaluator = self.evaluator()
        network = None
        if plan.needs_public_network:
            network = self.trained(
                PUBLIC_NETWORK, plan.public_at_work, self.settings.public_training
            )
        prior = self.prior(network)
        adapted = self.adapted(prior, target, network)
        sets = {}
        queries: dict[str, int] = {}
        for name, attack in plan.attacks.items():
            queries[name] = self.attack(name, attack, target, adapted)
            run.record(queries=queries)
            sets[name] = self.pictures(run.path / PICTURES, name)
        control = self.control(prior, sets) if self.inputs.holdout is None else None
        distance, features = scoring_embeddings(
            self.settings.embedding, self.settings.features, size=self.inputs.private.size,
            network=network, evaluator=evaluator,
        )  # fmt: skip
        reruns = self.reruns(queries, target, adapted)
        metrics = self.scores(sets, control, reruns, evaluator, distance, features)
        samples = self.signals(target)
        if reruns:
            metrics = self.budget(metrics, reruns)
        run.record(warnings=self.log.warnings, notes=self.log.notes)
        gallery: tuple[GalleryItem, ...] = ()
        if self.settings.images != "none":
            gallery = make_gallery(
                run.path,
                self.inputs.private,
                sets.values(),
                blurred=self.settings.images == "blurred",
            )
        report_stage(run.path, gallery=gallery)  # anew each time, with every stage's time
        run.record(finished=True)
        over = crossed(thresholds(self.settings.fail_on), metrics)
        return AuditResult(run.path, metrics, samples, tuple(self.log.warnings), over)

    def stage(self, name: str, fill: Callable[[Path], object], part: str | None = None) -> Path:
        """Return the folder of stage ``name``; ``part`` is what ran out of memory, if not the stage."""
        kept = (
            f"what is finished is kept in {self.run.path}, and --resume goes on with these settings "
            "where there is more memory"
        )
        with self.plan.remedy(part or name, kept):
            return self.run.stage(name, fill)

    def trained(self, name: str, images: ImageSet, training: Training) -> SavedClassifier:
        """Return a classifier that is trained here."""
        folder = self.stage(
            name,
            lambda f: write_network(
                f,
                train_network(
                    images, training, name=name, image_shape=self.plan.shape, context=self.context
                ),
            ),
        )
        return load_network(folder, self.plan.device)

    def target(self) -> Target:
        """Return the model under audit, trained here if none was given."""
        target = self.inputs.target
        if target is None:
            saved = self.trained("target", self.inputs.private, self.settings.target_training)
            target = target_of(saved, "trained by this audit")
            self.log.say(
                "No target was given: a small classifier was trained on the private images, so the "
                "result is about that classifier and not about a model of yours."
            )
        target = target.to(self.plan.device)
        accuracy = accuracy_on(target, self.inputs.private)
        if accuracy < LOW_TARGET_ACCURACY:
            self.log.warn(
                f"the target puts only {accuracy:.0%} of the private images in their class; usual "
                "causes: class order (--classes), normalisation (--mean / --std), input size "
                "(--size). An audit of a model that is called wrongly means nothing"
            )
        self.run.record(target={**describe_target(target), "private_accuracy": accuracy})
        return target

    def evaluator(self) -> Target:
        """Return the independent classifier, trained here if none was given."""
        evaluator = self.inputs.evaluator
        if evaluator is None:
            training = self.settings.evaluator_training
            if self.inputs.target is None and (
                training.architecture == self.settings.target_training.architecture
            ):
                self.log.warn(
                    "evaluator_training.architecture is the target's own; an evaluator that is the "
                    "target's twin shares its mistakes"
                )
            saved = self.trained("evaluator", self.inputs.private, training)
            evaluator = target_of(saved, "trained by this audit")
        evaluator = evaluator.to(self.plan.device)
        accuracy: float | None = None
        if self.inputs.holdout is None:
            self.log.warn(
                "no holdout was given, so the evaluator could not be checked on images it never saw"
            )
        else:
            accuracy = accuracy_on(evaluator, self.inputs.holdout)
            if accuracy < LOW_EVALUATOR_ACCURACY:
                self.log.warn(
                    f"the evaluator puts only {accuracy:.0%} of the holdout in their class; an "
                    "evaluator that cannot classify real images cannot judge reconstructions, so "
                    "read accuracy and KNN distance with care"
                )
        self.run.record(evaluator={**describe_target(evaluator), "holdout_accuracy": accuracy})
        return evaluator

    def prior(self, network: SavedClassifier | None) -> Prior:
        """Return the generator of images like the public ones."""
        given, own = self.plan.given_prior, self.plan.own_prior
        if own is not None:
            self.log.say("The prior is the user's own; it was used as it is, without adaptation.")
            return own
        if given is not None:
            self.log.say(f"The prior was made before: {self.settings.prior}.")
            self.stage("prior", lambda f: shutil.copyfile(given.file, f / PRIOR_FILE))
            return given.prior.to(self.plan.device)
        training = prior_training(self.settings)
        if training is None:
            raise ConfigError("prior: none")
        images = self.plan.public_for_prior.images
        folder = self.stage(
            "prior",
            lambda f: prior_stage(
                f, images, training, monitor=self.monitor(f, network), context=self.context
            ),
        )
        return StylePrior.load(folder / PRIOR_FILE).to(self.plan.device)

    def monitor(self, folder: Path, network: SavedClassifier | None) -> SampleMonitor:
        """Return the monitor of a prior's training, with features that cost little beside it."""
        features = "none"
        if network is not None:
            features = "public"
        elif self.settings.features == "pixel" or (
            self.settings.features == "inception" and self.plan.device.type != "cpu"
        ):
            features = self.settings.features
        images = self.plan.public_for_prior.images
        return monitor_of(
            folder, images, features=features, network=network, device=self.plan.device
        )

    def adapted(self, prior: Prior, target: Target, network: SavedClassifier | None) -> Prior:
        """Return the prior fine-tuned against the target."""
        arm, adaptation = self.settings.arm, self.settings.adaptation
        if not isinstance(prior, StylePrior):
            return prior
        if adaptation.keeps_prior:
            self.log.say("The prior was used as it is: adaptation.steps is 0.")
            return prior
        if self.settings.private is not None:
            warn_of_few(self.inputs.public, self.log)
        metric: Embedding | None = None
        if ARMS[arm].natural_gradient:
            metric = guidance_metric(
                self.settings.guidance_embedding, size=self.plan.prior_shape[1],
                public_network=network,
            )  # fmt: skip
        images = self.plan.public_for_prior.images
        folder = self.stage(
            "adaptation",
            lambda f: adaptation_stage(
                f, prior, target, images, arm=arm, adaptation=adaptation, metric=metric,
                monitor=self.monitor(f, network), context=self.context,
            ),
        )  # fmt: skip
        adapted = StylePrior.load(folder / PRIOR_FILE).to(self.plan.device)
        entropies = describe_adaptation(
            prior, adapted, target, arm=arm, adaptation=adaptation, context=self.context
        )
        if entropies:
            self.run.record(class_entropy=entropies)
        if entropies or adapted.pivots is not None:
            blind = [n for n, a in self.plan.attacks.items() if a.access is not Access.WHITE_BOX]
            if blind:
                self.log.say(
                    f"{', '.join(blind)}: the attack itself had no gradients of the target, but the "
                    "prior was adapted with them; an attacker without them has --arm vanilla and no "
                    "adaptation.pivots."
                )
        return adapted

    def attack(self, name: str, attack: Attack, target: Target, prior: Prior) -> int:
        """Attack every class, its images in RUN/reconstructions; return the images sent to the target."""

        def fill(folder: Path) -> None:
            with hidden_names(self.run.path, self.settings.hash_ids) as hide:
                attack_stage(
                    folder, attack, target, prior, self.labels, name=name, context=self.context,
                    hide=hide,
                )  # fmt: skip

        folder = self.stage(f"attack-{name}", fill, name)
        move_pictures(folder / PICTURES, self.run.path / PICTURES)
        facts = AttackFacts.read(folder)
        if facts.left_out is not None:
            self.log.warn(f"{name}: {facts.left_out}")
        return facts.queries

    def pictures(self, folder: Path, name: str) -> ImageSet:
        """Return the images of the attack called ``name`` in ``folder``."""
        return read_pictures(
            folder, name, classes=self.inputs.classes, channels=self.inputs.private.channels
        )

    def control(self, prior: Prior, sets: Mapping[str, ImageSet]) -> ImageSet:
        """Return as many samples of the prior before adaptation as all attacks made, unguided."""
        labels = torch.cat([one.labels for one in sets.values()])
        folder = self.stage(
            CONTROL,
            lambda f: control_stage(
                f, prior, labels, attacks=self.plan.attacks.values(), classes=self.inputs.classes,
                context=self.context,
            ),
        )  # fmt: skip
        return self.pictures(folder / PICTURES, CONTROL)

    def scores(
        self,
        sets: Mapping[str, ImageSet],
        control: ImageSet | None,
        reruns: Sequence[Rerun],
        evaluator: Target,
        distance: Embedding,
        features: Embedding,
    ) -> Metrics:
        """Score each attack and all of them together; return metrics.json."""

        def fill(folder: Path) -> None:
            within = {
                one.folder.name: self.pictures(one.folder / PICTURES, one.attack)
                for one in reruns
                if one.folder is not None and (one.folder / PICTURES).is_dir()
            }
            settings = self.settings
            found = evaluate(
                self.inputs.private, sets, distance=distance, features=features,
                evaluator=evaluator, holdout=self.inputs.holdout, control=control,
                distance_only=within, neighbours=True, pairs=settings.pairs, fdr=settings.fdr,
                memory=settings.memory, seed=settings.seed, checkpoint=folder,
                device=self.plan.device, progress=self.log.stage("scores"),
            )  # fmt: skip
            with hidden_names(self.run.path, self.settings.hash_ids) as hide:
                write_evaluation(folder, found, hide=hide)

        folder = self.stage("scores", fill)
        publish_scores(self.run, folder, without=LEDGER)  # which the signals join first
        metrics: Metrics = json.loads((folder / "metrics.json").read_text())
        return metrics

    def signals(self, target: Target) -> pd.DataFrame:
        """Join to the ledger what the target says of each private image; return the ledger."""

        def fill(folder: Path) -> None:
            with hidden_names(self.run.path, self.settings.hash_ids) as hide:
                signals_stage(
                    folder, target, self.inputs.private, scores=self.run.folder("scores"),
                    seen=self.settings.embedding == "evaluator", hide=hide, context=self.context,
                )  # fmt: skip

        folder = self.stage("signals", fill)
        for file in (SIGNALS_FILE, LEDGER):
            self.run.publish(folder / file)
        return pd.read_parquet(folder / LEDGER)

    def reruns(self, queries: Mapping[str, int], target: Target, prior: Prior) -> list[Rerun]:
        """Run each attack again for each number of queries of the budget; return all of its points."""
        found = []
        for name, attack in self.plan.attacks.items():
            whole = self.run.folder(f"attack-{name}")
            for most in self.settings.budget:
                less = cut_to(
                    attack, most, prior=prior, classes=len(self.labels), used=queries[name]
                )
                if less is None:
                    folder = None
                elif less is attack:
                    folder = whole
                else:
                    folder = self.rerun(name, less, most, target, prior)
                found.append(Rerun(name, most, folder))
            if self.settings.budget:
                found.append(Rerun(name, None, whole))
        return found

    def rerun(self, name: str, attack: Attack, queries: int, target: Target, prior: Prior) -> Path:
        """Run an attack with less of everything and at most ``queries`` images sent to the target."""

        def fill(folder: Path) -> None:
            try:
                attack_stage(
                    folder, attack, target, prior, self.labels, name=name, context=self.context,
                    limit=queries, title=f"{name}, {queries:,} queries",
                )  # fmt: skip
            except StageError as error:  # too little to start with
                write_json(folder / "facts.json", {"queries": None, "reason": str(error)})

        return self.stage(f"attack-{name}-within-{queries}", fill, name)

    def budget(self, metrics: Metrics, reruns: Sequence[Rerun]) -> Metrics:
        """Write the risk against queries; return metrics.json with the curves in it."""
        nearness = read_nearness(self.run.folder("scores"))
        folder = self.stage("budget", lambda f: budget_stage(f, reruns, nearness, metrics))
        for file in (BUDGET, "metrics.json"):
            self.run.publish(folder / file)
        found: Metrics = json.loads((folder / "metrics.json").read_text())
        return found
