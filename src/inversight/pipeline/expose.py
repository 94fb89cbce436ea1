"""Exposure of an audit that is there: shadow models added to it, or planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inversight.core.config import to_mapping
from inversight.core.console import Quiet, Reporter
from inversight.core.errors import ConfigError, RunError
from inversight.core.loggers import check_loggers
from inversight.core.run import Run, disk_remedy, read_manifest, read_object
from inversight.core.threads import usable_threads, using_threads
from inversight.pipeline.audit_shadows import JOB, SHADOWS_STAGE, check_shadows
from inversight.pipeline.estimate import estimate
from inversight.pipeline.execution import execute
from inversight.pipeline.given_models import read_models
from inversight.pipeline.plan import Plan, check_unchanged, with_cluster
from inversight.pipeline.result import AuditResult
from inversight.pipeline.score_inputs import anchored
from inversight.report.formatting import mapping
from inversight.risk.estimates import planned_factors
from inversight.settings import SHADOWS, resolve

PLANNED = (8, 16, 24, 32, 64)
"""Numbers of shadow models that a plan tells of."""


@dataclass(frozen=True)
class PlannedExposure:
    """What ``models`` shadow models would take and could find.

    seconds: None if they cannot be estimated. single: the factor of one image alone that would be found with
    80 % power, None if none could be; mean: that of the mean over private images. measured: by the spread of
    shadow models that are there, not by that of the digits.
    """

    models: int
    seconds: float | None
    single: float | None
    mean: float
    measured: bool


def expose(
    run: Path | str,
    *,
    shadows: int | str | None = None,
    recipe: str | None = None,
    adapt_shadows: bool | None = None,
    keep_shadows: bool | None = None,
    workers: int | None = None,
    ray: str | None = None,
    reporter: Reporter | None = None,
) -> AuditResult:
    """Add shadow models to a finished audit, or more to those that it has.

    16 models and then 16 more are the same 32 as at once; p-values count the looks.

    Args:
        run: the run folder of an audit.
        shadows: number of shadow models in all; None: that of --shadows auto, or as many as there are.
        recipe: as the setting of the audit, see :class:`inversight.settings.AuditSettings`. For this and
            the following arguments None means: as it was.
        adapt_shadows: as the setting of the audit.
        keep_shadows: as the setting of the audit.
        workers: as the setting of the audit.
        ray: as the setting of the audit.
        reporter: receives progress and messages.

    Raises:
        InputError: not an audit, its inputs have changed, it has more shadow models, or the recipe is not
            known; nothing has been written.
        StageError: a model could not be trained or attacked; what is finished is kept.
    """
    path, reporter = Path(run), reporter or Quiet()
    manifest = _manifest(path)
    given = {
        name: value
        for name, value in locals().items()
        if name in ("recipe", "adapt_shadows", "keep_shadows", "workers", "ray")
        and value is not None
    }
    if "pairs" in (known := mapping(manifest.get("shadows"))) and not known["pairs"]:
        raise ConfigError(
            f"--shadows: {path} has exposure by models that were given; train shadow models in another run"
        )
    before = _models(path, manifest)
    wanted = "auto" if shadows is None else shadows
    settings = resolve({**manifest["given"], **given, "shadows": wanted})
    if settings.shadows == "auto":
        settings = replace(settings, shadows=max(before, SHADOWS[settings.preset]))
    check_loggers(settings.log)
    models = int(settings.shadows)
    if models < before or not models:
        has = f"{path} has {before} shadow models; give that number or more"
        raise ConfigError(
            f"--shadows {models}: {has if before else 'expected an even number of at least 4'}"
        )
    with (
        disk_remedy(str(path), f"continue with --resume {path}"),
        Run.open(path) as opened,
        using_threads(settings.threads or usable_threads()),
    ):
        plan = Plan.prepare(settings, reporter)
        check_unchanged(plan.manifest(), manifest, path)
        check_shadows(plan, path)
        with with_cluster(plan) as joined:
            opened.record(given=anchored(settings), settings=to_mapping(settings), finished=False)
            return execute(joined, opened, reporter)


def expose_models(
    run: Path | str, models: Path | str, *, reporter: Reporter | None = None
) -> AuditResult:
    """Measure exposure in a finished audit by models that somebody has, trained with and without images.

    Args:
        models: CSV file, see :func:`inversight.pipeline.given_models.read_models`.

    Raises:
        InputError: not an audit, its inputs have changed, or a model or its members are wrong.
    """
    path, reporter = Path(run), reporter or Quiet()
    manifest = _manifest(path)
    if mapping(manifest.get("shadows")).get("models"):
        raise ConfigError(f"--models: {path} has exposure already; measure it in another run")
    remedy = f"run inversight expose {path} --models {models} again"
    with disk_remedy(str(path), remedy), Run.open(path) as opened:
        settings = resolve({**manifest["given"], "shadows": 0})
        check_loggers(settings.log)
        # A threshold on exposure can be checked, though no shadow model is trained.
        plan = Plan.prepare(replace(settings, fail_on=None), reporter)
        plan = replace(plan, settings=settings)
        check_unchanged(plan.manifest(), manifest, path)
        trained = read_models(Path(models), plan.inputs.joined.ids)
        for one in trained:
            one.load(plan, reporter.warn)
        return execute(plan, opened, reporter, trained)


def plan_exposure(run: Path | str, *, reporter: Reporter | None = None) -> list[PlannedExposure]:
    """Return what different numbers of shadow models would take and could find, training nothing.

    Raises:
        InputError: not an audit, or its inputs have changed.
    """
    path, reporter = Path(run), reporter or Quiet()
    manifest = _manifest(path)
    given = {**manifest["given"], "shadows": 0, "fail_on": None}
    plan = Plan.prepare(resolve(given), reporter)
    check_unchanged(plan.manifest(), manifest, path)
    # The spread of models that were given is not that of differences within pairs.
    in_pairs = bool(mapping(manifest.get("shadows")).get("pairs"))
    return planned(plan, _spread(path) if in_pairs else None)


def planned(plan: Plan, known: dict[str, float] | None = None) -> list[PlannedExposure]:
    """Return the plan of an audit's shadow models; ``known``: spread and prior freedom of earlier ones."""
    forecast, images = estimate(plan), len(plan.inputs.private)
    found = []
    for models in PLANNED:
        single, mean = planned_factors(models, images, fdr=plan.settings.fdr, **(known or {}))
        found.append(
            PlannedExposure(
                models, forecast.shadow_seconds(models), single, mean, measured=bool(known)
            )
        )
    return found


def _models(path: Path, manifest: Mapping[str, Any]) -> int:
    """Return the number of shadow models whose exposure the run shows, 0 after they were deleted."""
    if not (path / "stages" / SHADOWS_STAGE / JOB).is_file():
        return 0
    return int(mapping(manifest.get("shadows")).get("models") or 0)


def _spread(path: Path) -> dict[str, float] | None:
    """Return the spread of an image's differences over the shadow models of the run, if it has any."""
    if not (path / "metrics.json").is_file():
        return None
    exposed = mapping(read_object(path / "metrics.json").get("exposed"))
    names = ("spread", "prior_freedom")
    return {name: float(exposed[name]) for name in names if name in exposed} or None


def _manifest(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path)
    if "given" not in manifest or "part_of" in manifest:
        raise RunError(f"{path}: is not an audit, so that it has no target and no attack to repeat")
    return manifest
