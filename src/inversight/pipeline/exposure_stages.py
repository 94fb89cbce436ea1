"""The stages of an audit that measure exposure: shadow models, or models that somebody has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from inversight.core.console import Log
from inversight.core.run import Run
from inversight.core.seeding import generator
from inversight.embeddings import named_embedding
from inversight.models.networks import SavedClassifier
from inversight.models.target import Target
from inversight.pipeline.adapt import guidance_metric
from inversight.pipeline.audit_shadows import (
    EXPOSURE_STAGE,
    GIVEN_STAGE,
    SHADOWS_STAGE,
    begin_shadows,
    recipe_of,
    shadow_facts,
    shadow_job,
    target_epochs,
)
from inversight.pipeline.context import Context
from inversight.pipeline.exposure import exposure_stage, log_distances, shadow_exposure
from inversight.pipeline.given_models import TrainedModel
from inversight.pipeline.plan import Plan
from inversight.pipeline.shadow_run import ShadowRun
from inversight.pipeline.shadows import (
    MEASURED,
    Measured,
    ShadowAdaptation,
    ShadowAttack,
    ShadowJob,
    measure_model,
)
from inversight.pipeline.signals import LEDGER
from inversight.priors import Prior, StylePrior
from inversight.priors.image_cache import ImageCache
from inversight.report.formatting import mapping
from inversight.risk.exposure import Exposure
from inversight.risk.unpaired import unpaired_exposure


class ExposureStages:
    """What an audit does about exposure.

    stage: see :meth:`inversight.core.run.Run.stage`. wanted: whether shadow models are trained, as far as the
    settings have any.
    """

    def __init__(
        self, plan: Plan, run: Run, log: Log, stage: Callable[[str, Callable[[Path, Context], object]], Path],
        *, wanted: bool,
    ) -> None:  # fmt: skip
        self.plan, self.run, self.log, self.stage, self.wanted = plan, run, log, stage, wanted

    @property
    def published(self) -> bool:
        """Whether the run's tables and metrics have exposure from earlier."""
        return bool(mapping(self.run.manifest.get("shadows")).get("models"))

    @contextmanager
    def shadows(self) -> Iterator[ShadowRun | None]:
        """Give the shadow models, whose training begins now if there are other processes for it."""
        if not self.plan.shadows or not self.wanted:
            yield None
            return
        recipe = recipe_of(self.plan, target_epochs(self.run.path))
        with begin_shadows(self.plan, shadow_job(self.plan, recipe), self.run.path) as one:
            yield one

    def attack(
        self, prior: Prior, network: SavedClassifier | None, evaluator: Target | None
    ) -> ShadowAttack:
        """Return the first attack as it is run on each shadow model, by default without adaptation."""
        settings, images = self.plan.settings, self.plan.public_for_prior.images
        name, attack = next(iter(self.plan.attacks.items()))
        adaptation = None
        if settings.adapt_shadows and self.plan.adapts:
            metric = guidance_metric(
                settings.arm, settings.guidance_embedding, size=images.shape[-1],
                public_network=network,
            )  # fmt: skip
            adaptation = ShadowAdaptation(images, settings.arm, settings.adaptation, metric)
        if isinstance(prior, StylePrior):
            prior = replace(prior, cache=ImageCache())  # one pool for all models
        distance = named_embedding(
            settings.exposure_distance, use="distance", role="--exposure-embedding",
            size=self.plan.inputs.private.size, public_network=network, evaluator=evaluator,
        )  # fmt: skip
        return ShadowAttack(
            name, attack, prior, distance, settings.memory, settings.exposure_nearest, adaptation
        )

    def measure(self, shadows: ShadowRun, target: Target) -> Measured:
        """Finish the shadow models and publish what they show."""
        run, settings, job = self.run, self.plan.settings, shadows.job
        models = self.plan.shadows
        # Before the end of the others, who go on meanwhile.
        given = self.stage(
            GIVEN_STAGE, lambda f, _: shadows.measure_target(target).write(f / MEASURED)
        )
        with self.plan.remedy(SHADOWS_STAGE, f"what is finished is kept in {run.path}"):
            run.growing(SHADOWS_STAGE, lambda _: shadows.finish(self.log.stage(SHADOWS_STAGE)))
        found = Measured.read(run.folder(SHADOWS_STAGE), models // 2, settings.shadow_pairs)
        known = [k for k in mapping(run.manifest.get("shadows")).get("looks", []) if k < models]
        looks = [*known, models]
        result = shadow_exposure(
            job, found, Measured.load(given / MEASURED), fdr=settings.fdr, looks=len(looks)
        )
        run.record(shadows=shadow_facts(job, found, self.plan, looks))  # before anybody can look
        self._publish(f"{EXPOSURE_STAGE}{models}", job, result)
        return found

    def measure_models(self, models: Sequence[TrainedModel], attack: ShadowAttack) -> None:
        """Attack the models that were given and publish what they show."""
        job = shadow_job(self.plan, None)
        progress = self.log.stage("models")

        def measure(folder: Path) -> None:
            for number, one in enumerate(models):
                file = folder / one.file_name
                if not file.is_file():
                    measure_model(job, attack, one.load(self.plan), one.members).write(file)
                progress(number + 1, len(models))

        folder = self.run.growing("models", measure)
        found = Measured.joined([Measured.load(folder / one.file_name) for one in models])
        result = unpaired_exposure(
            log_distances(found), found.membership, job.images.labels, private=job.is_private,
            fdr=self.plan.settings.fdr, rng=generator(job.seed, "exposure"),
        )  # fmt: skip
        self._publish(f"{EXPOSURE_STAGE}models", job, result)
        self.run.record(shadows=shadow_facts(job, found, self.plan, [len(models)]))

    def _publish(self, name: str, job: ShadowJob, result: Exposure) -> None:
        """Write the tables and metrics with exposure, and publish them."""
        run = self.run
        ledger = run.folder("signals") / LEDGER
        metrics = run.folder("budget" if self.plan.settings.budget else "scores") / "metrics.json"
        stage = self.stage(
            name,
            lambda f, context: exposure_stage(f, metrics, ledger, job, result, hide=context.hide),
        )
        run.publish(*(file for file in stage.iterdir() if file.name != "stage.json"))
