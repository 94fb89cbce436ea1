"""The stages of an audit in order. Each is kept in the run folder and skipped if it is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from inversight.attacks import Attack
from inversight.attacks.control import NAME as CONTROL
from inversight.attacks.endpoint import EndpointError
from inversight.attacks.files import PICTURES, load_features, move_pictures
from inversight.attacks.workload import cut_to
from inversight.core.console import Log, Reporter
from inversight.core.errors import StageError
from inversight.core.loggers import Followed
from inversight.core.run import (
    Run,
    atomic_folder,
    hidden_names,
    names_behind,
    read_object,
    write_json,
)
from inversight.core.threads import using_threads
from inversight.data import ImageSet
from inversight.embeddings import Embedding
from inversight.models.class_order import LOW_ACCURACY, accuracy_line, low_accuracy
from inversight.models.networks import SavedClassifier
from inversight.models.target import Access, Target, accuracy_on, describe_target, target_of
from inversight.pipeline.adapt import adaptation_stage, describe_adaptation, guidance_metric
from inversight.pipeline.attack import (
    AttackFacts,
    attack_stage,
    control_stage,
    pictures_of,
    read_pictures,
)
from inversight.pipeline.beside import TrainingBeside
from inversight.pipeline.budget import BUDGET, Rerun, budget_stage
from inversight.pipeline.context import Context
from inversight.pipeline.evaluation import evaluate
from inversight.pipeline.exposure import exposure_gallery
from inversight.pipeline.exposure_stages import ExposureStages
from inversight.pipeline.given_models import TrainedModel
from inversight.pipeline.logs import followed, log_attack, log_results
from inversight.pipeline.plan import Plan
from inversight.pipeline.prior import (
    FrechetToPublic,
    distance_to_public,
    prior_stage,
    warn_of_few,
)
from inversight.pipeline.report import make_gallery, report_stage
from inversight.pipeline.result import AuditResult, crossed, thresholds
from inversight.pipeline.score import publish_scores, scoring_embeddings
from inversight.pipeline.scored import write_evaluation
from inversight.pipeline.service import ServiceAttack
from inversight.pipeline.shadow_run import ShadowRun
from inversight.pipeline.signals import LEDGER, SIGNALS_FILE, signals_stage
from inversight.pipeline.train import PUBLIC_NETWORK, load_network, network_stage
from inversight.priors import Prior, SampleMonitor, StylePrior
from inversight.priors.prior_file import PRIOR_FILE, PriorFile
from inversight.report import GalleryItem
from inversight.report.contents import (
    EXPOSURE_GALLERY,
    GALLERY,
    ExposureItem,
    write_gallery,
)
from inversight.report.formatting import mapping
from inversight.settings import Training

METRICS_FILE = "metrics.json"
LOW_EVALUATOR_ACCURACY = 0.6


def execute(
    plan: Plan, run: Run, reporter: Reporter, models: Sequence[TrainedModel] = ()
) -> AuditResult:
    """Run every stage of ``plan`` that is not done yet in ``run``.

    ``models``: trained models to measure exposure by, instead of shadow models.

    Raises:
        StageError: a stage failed; what is finished can be resumed.
    """
    # The audits within a comparison of defences have no logs of their own.
    names = () if "part_of" in run.manifest else plan.settings.log
    with followed(run, names, reporter) as follow:
        return _Audit(plan, run, follow, models).all()


def copy_stage(source: Path, run: Run, stage: str) -> None:
    """Copy a stage of the run in ``source``, an attack's images included, unless ``run`` has it."""
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

    def __init__(
        self, plan: Plan, run: Run, follow: Followed, models: Sequence[TrainedModel] = ()
    ) -> None:
        self.models, self.follow = models, follow
        chosen = run.manifest.get("chosen")  # of a resumed run, whose plan names the attack alone
        log = Log(follow, list(plan.inputs.warnings), [] if chosen is None else [chosen])
        self.exposing = ExposureStages(plan, run, log, self.stage, wanted=not models)
        self.plan, self.settings, self.inputs = plan, plan.settings, plan.inputs
        self.run, self.log = run, log
        self.beside: TrainingBeside | None = None
        self.labels = plan.inputs.private.labels.unique(sorted=True)
        self.context = Context(plan.settings.seed, plan.device, log)
        # One distance for both trainings, with the public images' features.
        self.watched: list[FrechetToPublic | None] = []

    def all(self) -> AuditResult:
        """Run all stages in order."""
        with TrainingBeside(self.plan, self.run) as beside:
            self.beside = beside
            target = self.target()
            with self.exposing.shadows() as shadows:
                return self.rest(target, shadows)

    def rest(self, target: Target, shadows: ShadowRun | None) -> AuditResult:
        """Run the stages after the target, while other processes may train ``shadows`` or the evaluator."""
        run, plan, settings = self.run, self.plan, self.settings
        network = None
        if plan.needs_public_network(exposure=shadows is not None or bool(self.models)):
            network = self.trained(PUBLIC_NETWORK, plan.public_at_work, settings.public_training)
        prior = self.prior(network)
        # Before the evaluator, where it is not needed: other processes go on with the attack meanwhile.
        judge = self.evaluator() if settings.exposure_distance == "evaluator" else None
        attack_on_each = None
        if shadows is not None or self.models:
            attack_on_each = self.exposing.attack(prior, network, judge)
        if shadows is not None and attack_on_each is not None:
            shadows.attack(attack_on_each)
        evaluator = judge or self.evaluator()
        distance, features = scoring_embeddings(
            settings.embedding, settings.features, size=self.inputs.private.size, network=network,
            evaluator=evaluator, target=target,
        )  # fmt: skip
        adapted = self.adapted(prior, target, network)
        sets, queries = {}, self.queries_of_adaptation()
        found_features: dict[str, Tensor] = {}
        for name, attack in plan.attacks.items():
            folder = self.attack(name, attack, target, adapted)
            move_pictures(folder, run.path)
            sets[name] = self.pictures(run.path / PICTURES, name)
            log_attack(self.follow, name, folder, sets[name], settings.images)
            if settings.embedding == "backbone":
                found_features |= load_features(folder, classes=target.classes, name=name)
            facts = AttackFacts.read(folder)
            if facts.left_out is not None:
                self.log.warn(f"{name}: {facts.left_out}")
            queries[name] = facts.queries
            run.record(queries=queries)
        control = self.control(prior, sets) if self.inputs.holdout is None else None
        reruns = self.reruns(queries, target, adapted)
        scores = self.scores(sets, control, reruns, evaluator, distance, features, found_features)
        # Tables with exposure stay until there are newer ones: they took longest, and may be all there will be.
        without = {LEDGER, METRICS_FILE} if self.exposing.published else set()
        publish_scores(
            run, scores, without={LEDGER, *without}
        )  # the ledger, which the signals join first
        signals = self.stage(
            "signals",
            lambda f, context: signals_stage(
                f, target, self.inputs.private, scores=scores,
                seen=settings.embedding == "evaluator", context=context,
            ),
        )  # fmt: skip
        run.publish(*(signals / name for name in (SIGNALS_FILE, LEDGER) if name not in without))
        if reruns:
            budget = self.stage("budget", lambda f, _: budget_stage(f, reruns, scores))
            run.publish(*(budget / name for name in (BUDGET, METRICS_FILE) if name not in without))
        found = None if shadows is None else self.exposing.measure(shadows, target)
        if self.models and attack_on_each is not None:
            self.exposing.measure_models(self.models, attack_on_each)
        metrics = read_object(run.path / METRICS_FILE)
        run.record(warnings=self.log.warnings, notes=self.log.notes)
        samples = pd.read_parquet(run.path / LEDGER)
        gallery: tuple[GalleryItem, ...] = ()
        exposed: tuple[ExposureItem, ...] = ()
        if settings.images != "none":
            blurred = settings.images == "blurred"
            gallery = make_gallery(run.path, self.inputs.private, sets.values(), blurred=blurred)
            if shadows is not None and found is not None:
                names = names_behind(run.path)
                exposed = exposure_gallery(samples, shadows.job, found, names, blurred=blurred)
        write_gallery(run.path / GALLERY, gallery)
        write_gallery(run.path / EXPOSURE_GALLERY, exposed)
        # Anew, with every stage's time.
        log_results(self.follow, report_stage(run.path))
        run.record(finished=True)
        over = crossed(thresholds(settings.fail_on), metrics)
        return AuditResult(run.path, metrics, samples, tuple(self.log.warnings), over)

    def stage(
        self, name: str, fill: Callable[[Path, Context], object], part: str | None = None
    ) -> Path:
        """Return the folder of stage ``name``; ``part`` is what ran out of memory, if not the stage."""
        kept = (
            f"what is finished is kept in {self.run.path}, and --resume goes on with these settings "
            "where there is more memory"
        )

        def fill_hiding(folder: Path) -> None:
            with hidden_names(self.run.path, self.settings.hash_ids) as hide:
                fill(folder, replace(self.context, hide=hide))

        # No more than now: other processes may be using the other cores.
        number = mapping(self.run.manifest.get("stage_threads")).get(name)
        most = torch.get_num_threads() if number is None else min(number, torch.get_num_threads())
        with self.plan.remedy(part or name, kept), using_threads(most):
            return self.run.stage(name, fill_hiding)

    def trained(self, name: str, images: ImageSet, training: Training) -> SavedClassifier:
        """Return a classifier that is trained here."""
        folder = self.stage(
            name,
            lambda f, context: network_stage(
                f, images, training, name=name, image_shape=self.plan.shape, context=context
            ),
        )
        return load_network(folder, self.plan.device)

    def classifier(
        self,
        name: str,
        given: Target | None,
        training: Training,
        *,
        on: str,
        images: ImageSet | None,
    ) -> tuple[Target, float | None]:
        """Return the target or evaluator, trained here if it was not given, and its accuracy on ``images``.

        ``on`` is the name of the images in the manifest.
        """
        if given is None:
            saved = self.trained(name, self.inputs.private, training)
            given = target_of(saved, "trained by this audit")
        found = given.to(self.plan.device)
        if name == "target":
            found = found.restricted(self.plan.access)
        accuracy = None if images is None else accuracy_on(found, images)
        self.run.record(**{name: {**describe_target(found), f"{on}_accuracy": accuracy}})
        return found, accuracy

    def target(self) -> Target:
        """Return the model under audit."""
        if self.inputs.target is None:
            self.log.say(
                "No target was given: a small classifier was trained on the private images, so the "
                "result is about that classifier and not about a model of yours."
            )
        target, accuracy = self.classifier(
            "target", self.inputs.target, self.settings.target_training,
            on="private", images=self.inputs.private,
        )  # fmt: skip
        if accuracy is not None:
            self.log.reporter.say(accuracy_line(accuracy))
        if accuracy is not None and accuracy < LOW_ACCURACY:
            self.log.warn(low_accuracy(target, self.inputs.private, accuracy))
        return target

    def evaluator(self) -> Target:
        """Return the independent classifier."""
        training, inputs = self.settings.evaluator_training, self.inputs
        if self.beside is not None:
            self.beside.wait()
        own = inputs.evaluator is None and inputs.target is None
        if own and training.architecture == self.settings.target_training.architecture:
            self.log.warn(
                "evaluator_training.architecture is the target's own; an evaluator that is the "
                "target's twin shares its mistakes"
            )
        evaluator, accuracy = self.classifier(
            "evaluator", inputs.evaluator, training, on="holdout", images=inputs.holdout
        )
        if accuracy is None:
            self.log.warn(
                "no holdout was given, so the evaluator could not be checked on images it never saw"
            )
        elif accuracy < LOW_EVALUATOR_ACCURACY:
            self.log.warn(
                f"the evaluator puts only {accuracy:.0%} of the holdout in their class; an "
                "evaluator that cannot classify real images cannot judge reconstructions, so "
                "read accuracy and KNN distance with care"
            )
        return evaluator

    def prior(self, network: SavedClassifier | None) -> Prior:
        """Return the generator of images like the public ones."""
        prior, images = self.plan.prior, self.plan.public_for_prior.images
        if isinstance(prior, Prior):
            self.log.say("The prior is the user's own; it was used as it is, without adaptation.")
            return prior
        if isinstance(prior, PriorFile):
            self.log.say(f"The prior was made before: {self.settings.prior}.")
            self.stage("prior", lambda f, _: shutil.copyfile(prior.file, f / PRIOR_FILE))
            return prior.prior.to(self.plan.device)
        folder = self.stage(
            "prior",
            lambda f, context: prior_stage(
                f, images, prior, monitor=self.monitor(f, network), context=context
            ),
        )
        return StylePrior.load(folder / PRIOR_FILE).to(self.plan.device)

    def monitor(self, folder: Path, network: SavedClassifier | None) -> SampleMonitor:
        """Return the monitor of a prior's training, with features that cost little beside it."""
        if not self.watched:
            cheap = ("pixel",) if self.plan.device.type == "cpu" else ("pixel", "inception")
            own = self.settings.features if self.settings.features in cheap else "none"
            distance = distance_to_public(
                self.plan.public_for_prior.images, features="public" if network else own,
                network=network, device=self.plan.device,
            )  # fmt: skip
            self.watched.append(distance)
        return SampleMonitor(folder, self.watched[0])

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
        images = self.plan.public_for_prior.images
        metric = guidance_metric(
            arm, self.settings.guidance_embedding, size=images.shape[-1], public_network=network
        )
        folder = self.stage(
            "adaptation",
            lambda f, context: adaptation_stage(
                f, prior, target, images, arm=arm, adaptation=adaptation, metric=metric,
                monitor=self.monitor(f, network), context=context,
            ),
        )  # fmt: skip
        adapted = StylePrior.load(folder / PRIOR_FILE).to(self.plan.device)
        entropies = describe_adaptation(
            prior, adapted, target, arm=arm, adaptation=adaptation, context=self.context
        )
        if entropies:
            self.run.record(class_entropy=entropies)
        blind = [n for n, a in self.plan.attacks.items() if a.access is not Access.WHITE_BOX]
        if blind and (entropies or adapted.pivots is not None):
            self.log.say(
                f"{', '.join(blind)}: the attack itself had no gradients of the target, but the "
                "prior was adapted with them; an attacker without them has --arm vanilla and no "
                "adaptation.pivots."
            )
        return adapted

    def queries_of_adaptation(self) -> dict[str, int]:
        """Return the images that the adaptation sent to a target of limited access, if it did."""
        facts = self.run.folder("adaptation") / "facts.json"
        sent = int(read_object(facts)["queries"]) if facts.is_file() else 0
        return {"adaptation": sent} if sent else {}

    def attack(
        self, name: str, attack: Attack, target: Target, prior: Prior, limit: int | None = None
    ) -> Path:
        """Attack every class, with at most ``limit`` images sent to the target."""
        stage, title = f"attack-{name}", name
        if limit is not None:
            stage, title = f"{stage}-within-{limit}", f"{name}, {limit:,} queries"

        def fill(folder: Path, context: Context) -> None:
            endpoint = self.inputs.endpoint
            if endpoint is not None and limit is None:  # keeps finished classes
                again = "--resume goes on"
                ServiceAttack(folder, attack, name, target.spec, "", context, again).run(
                    target, endpoint, prior, self.labels
                )
                return
            try:
                attack_stage(
                    folder, attack, target, prior, self.labels, name=name, context=context,
                    limit=limit, title=title,
                )  # fmt: skip
            except StageError as error:
                if limit is None or isinstance(error, EndpointError):
                    raise
                # Too little to start with.
                write_json(folder / "facts.json", {"queries": None, "reason": str(error)})

        return self.stage(stage, fill, name)

    def pictures(self, folder: Path, name: str) -> ImageSet:
        """Return the images of the attack called ``name`` in ``folder``."""
        return read_pictures(
            folder, name, classes=self.inputs.private.classes, channels=self.inputs.private.channels
        )

    def control(self, prior: Prior, sets: Mapping[str, ImageSet]) -> ImageSet:
        """Return as many samples of the prior before adaptation as all attacks made, unguided."""
        labels = torch.cat([one.labels for one in sets.values()])
        folder = self.stage(
            CONTROL,
            lambda f, context: control_stage(
                f, prior, labels, attacks=self.plan.attacks.values(),
                classes=self.inputs.private.classes, context=context,
            ),
        )  # fmt: skip
        return self.pictures(folder / PICTURES, CONTROL)

    def scores(
        self, sets: Mapping[str, ImageSet], control: ImageSet | None, reruns: Sequence[Rerun],
        evaluator: Target, distance: Embedding, features: Embedding, found_features: Mapping[str, Tensor],
    ) -> Path:  # fmt: skip
        """Score each attack and all of them together."""

        def fill(folder: Path, context: Context) -> None:
            settings, inputs = self.settings, self.inputs
            within = {
                one.folder.name: self.pictures(one.folder / PICTURES, one.attack)
                for one in reruns
                if one.folder is not None and (one.folder / PICTURES).is_dir()
            }
            progress = self.log.stage("scores")
            found = evaluate(
                inputs.private, sets, distance=distance, features=features, evaluator=evaluator,
                holdout=inputs.holdout, public=inputs.public, control=control, distance_only=within,
                known_features=found_features,
                neighbours=True, twins=None if inputs.holdout is None else inputs.twins(progress),
                pairs=settings.pairs, fdr=settings.fdr, memory=settings.memory, seed=settings.seed,
                checkpoint=folder, device=self.plan.device, progress=progress,
            )  # fmt: skip
            write_evaluation(folder, found, hide=context.hide)

        return self.stage("scores", fill)

    def reruns(self, queries: Mapping[str, int], target: Target, prior: Prior) -> list[Rerun]:
        """Run each attack again for each number of queries of the budget; return all of its points."""
        found = []
        for name, attack in self.plan.attacks.items():
            whole, classes = self.run.folder(f"attack-{name}"), len(self.labels)
            for most in self.settings.budget:
                less = cut_to(attack, most, prior=prior, classes=classes, used=queries[name])
                folder = None if less is None else whole
                if less is not None and less is not attack:
                    folder = self.attack(name, less, target, prior, limit=most)
                found.append(Rerun(name, most, folder))
            if self.settings.budget:
                found.append(Rerun(name, None, whole))
        return found
