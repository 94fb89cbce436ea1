"""The shadow models of an audit: their job, from its settings, and what the run says of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from inversight.core.config import to_mapping
from inversight.core.errors import RunError
from inversight.core.run import read_object, write_json
from inversight.data import ImageSet
from inversight.models.recipes import Recipe, TrainingRecipe
from inversight.pipeline.estimate import Estimate
from inversight.pipeline.plan import Plan, check_thresholds, workers_of
from inversight.pipeline.ray_run import RayRun
from inversight.pipeline.shadow_run import LocalRun, ShadowRun
from inversight.pipeline.shadows import Measured, ShadowJob, blocks_of
from inversight.report.formatting import duration
from inversight.settings import SHADOWS

_MOST_OF_THE_REST = 2.0
"""Time of the shadow models, in times of the rest, up to which ``auto`` has them."""
JOB = "job.json"
"""What all shadow models of a run have in common, beside their blocks."""
SHADOWS_STAGE = "shadows"
"""Stage of the shadow models, which may grow."""
GIVEN_STAGE = "shadow-target"
"""Stage of the model under audit, attacked as the shadow models are."""
EXPOSURE_STAGE = "exposure-"
"""Begin of the names of stages of tables and metrics with exposure, before the number of models."""


def recipe_of(plan: Plan, epochs: int | None) -> Recipe:
    """Return how shadow models are trained.

    ``epochs``: those of the target's training, if the audit trained it.
    """
    if plan.inputs.target is not None:
        return plan.load_recipe()
    training = plan.settings.target_training
    if epochs is not None:
        warmup = min(training.warmup_epochs, epochs)
        training = replace(training, epochs=epochs, warmup_epochs=warmup)
    return TrainingRecipe(training, plan.shape)


def decide_shadows(plan: Plan, forecast: Estimate, run: Path) -> tuple[Plan, str | None]:
    """Return the plan with the number of shadow models that ``auto`` means, and why there are none, if so.

    Raises:
        ConfigError: there are none, and a threshold of --fail-on needs them.
    """
    settings = plan.settings
    if settings.shadows != "auto":
        return plan, None
    models, reason = SHADOWS[settings.preset], None
    seconds = forecast.shadow_seconds(models)
    left_out = "Shadow models, which show what training on each image changed, are left out"
    if not plan.knows_recipe:
        reason = f"{left_out}: how the target was trained is not known; give --recipe"
    elif seconds is None or seconds > _MOST_OF_THE_REST * forecast.total:
        took = "an unknown time" if seconds is None else f"about {duration(seconds)}"
        reason = f"{left_out}, as they take {took}; add them with: inversight expose {run} --shadows {models}"
    decided = replace(plan, settings=replace(settings, shadows=0 if reason else models))
    check_thresholds(decided.settings)
    return decided, reason


def shadow_job(plan: Plan, recipe: Recipe | None) -> ShadowJob:
    """Return the job of the audit's shadow models."""
    settings, inputs = plan.settings, plan.inputs
    return ShadowJob(
        inputs.joined, len(inputs.private), inputs.twins().group, recipe, settings.seed, plan.device,
        pictures=settings.images != "none", keep=settings.keep_shadows, access=plan.access,
    )  # fmt: skip


def target_epochs(run: Path) -> int | None:
    """Return the epochs of the target that the audit in ``run`` trained, None if it trained none."""
    facts = run / "stages" / "target" / "facts.json"
    return int(read_object(facts)["epochs"]) if facts.is_file() else None


def job_facts(plan: Plan, recipe: Recipe | None, images: ImageSet) -> dict[str, Any]:
    """Return what the audit's shadow models have in common, which may not change while they are added."""
    settings = plan.settings
    return {
        "seed": settings.seed,
        "recipe": description(recipe),
        "attack": to_mapping(next(iter(plan.attacks.values()))),
        "shadow_pairs": settings.shadow_pairs,
        "adapt_shadows": settings.adapt_shadows,
        "embedding": settings.exposure_distance,
        "exposure_nearest": settings.exposure_nearest,
        "images": images_fingerprint(images),
    }


def check_shadows(plan: Plan, run: Path) -> None:
    """Check before anything is written that shadow models of ``plan`` can be added to those of ``run``.

    Raises:
        RunError: those that are there were made otherwise.
    """
    file = run / "stages" / SHADOWS_STAGE / JOB
    if file.is_file():
        facts = job_facts(plan, recipe_of(plan, target_epochs(run)), plan.inputs.joined)
        check_same_job(read_object(file), facts, run)


def begin_shadows(plan: Plan, job: ShadowJob, run: Path) -> ShadowRun:
    """Return the run of the job's blocks, after a check that those there are of this job.

    Raises:
        RunError: they are not.
    """
    settings, stages = plan.settings, run / "stages"
    folder = stages / SHADOWS_STAGE
    facts = job_facts(plan, job.recipe, job.images)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / JOB).is_file():
        check_same_job(read_object(folder / JOB), facts, run)
    else:
        for stale in (stages / GIVEN_STAGE, *stages.glob(f"{EXPOSURE_STAGE}[0-9]*")):
            shutil.rmtree(stale, ignore_errors=True)  # of models that were deleted to begin anew
        write_json(folder / JOB, facts)
    workers, threads = workers_of(plan)
    blocks = blocks_of(plan.shadows // 2, settings.shadow_pairs)
    if plan.cluster is not None:
        return RayRun(job, folder, blocks, cluster=plan.cluster)
    return LocalRun(job, folder, blocks, workers=workers, threads=threads)


def images_fingerprint(images: ImageSet) -> str:
    """Return a hash of the joined images and their groups."""
    groups = images.groups or (None,) * len(images)
    names = tuple(f"{name} {group}" for name, group in zip(images.ids, groups, strict=True))
    return replace(images, ids=names).fingerprint()


def check_same_job(before: Mapping[str, Any], now: Mapping[str, Any], run: Path) -> None:
    """Check that shadow models which are there were made as those that are asked for.

    Raises:
        RunError: naming the first difference.
    """
    for name, value in now.items():
        if before.get(name) != value:
            raise RunError(
                f"{run}: its shadow models were made with another {name} ({before.get(name)}, now "
                f"{value}); give the same again, or delete stages/shadows in it to begin anew"
            )


def description(recipe: Recipe | None) -> str:
    """Return how models were trained, in words; None: somebody else has trained them."""
    return "models that were given" if recipe is None else recipe.description


def shadow_facts(job: ShadowJob, found: Measured, plan: Plan, looks: list[int]) -> dict[str, Any]:
    """Return what run.json says of the shadow models, or of models that were given."""
    inside, outside = found.accuracy()
    models = len(found.membership)
    return {
        "models": models,
        "pairs": 0 if job.recipe is None else models // 2,
        "recipe": plan.settings.recipe if job.recipe is not None else description(job.recipe),
        "attack": next(iter(plan.attacks)),
        "looks": looks,
        "train_images": float(found.membership.sum(1).double().mean()),
        "target_images": job.private,
        "accuracy_in": inside,
        "accuracy_out": outside,
        "embedding": plan.settings.exposure_distance,
        "nearest": plan.settings.exposure_nearest,
        "prior": "adapted" if plan.settings.adapt_shadows and plan.adapts else "unadapted",
    }
