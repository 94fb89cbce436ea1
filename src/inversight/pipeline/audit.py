"""Audits: begun, and resumed."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inversight.core.console import Quiet, Reporter
from inversight.core.errors import ConfigError, RunError
from inversight.core.loggers import check_loggers
from inversight.core.run import Run, check_new_folder, disk_remedy, read_manifest
from inversight.core.threads import usable_threads, using_threads
from inversight.pipeline.audit_shadows import decide_shadows
from inversight.pipeline.beside import with_stage_beside
from inversight.pipeline.estimate import estimate
from inversight.pipeline.execution import execute
from inversight.pipeline.plan import Plan, check_unchanged, with_cluster
from inversight.pipeline.result import AuditResult
from inversight.settings import Adaptation, AuditSettings, PairMeasure, Training, resolve
from inversight.settings.audit import LoggerName, Pictures
from inversight.settings.names import AccessName
from inversight.settings.presets import Preset

DECODED = "decoded"
"""Folder of decoded images in a run folder, where there are many, until the run is finished."""

Part = str | Mapping[str, Any]
"""A name, an import path, or a mapping {class: name, setting: value}."""


def audit(
    *, private: Path | str | None = None, holdout: Path | str | None = None,
    public: Path | str | None = None, data: Path | str | None = None, splits: str | None = None,
    group_by: str | None = None, target: str | None = None,
    access: AccessName | None = None, endpoint_header: Sequence[str] | None = None,
    evaluator: str | None = None, classes: Path | str | None = None,
    mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
    size: int | tuple[int, int] | None = None, trust_target: bool | None = None,
    frozen_until: str | None = None, allow_overlap: bool | None = None,
    preset: Preset | None = None, seed: int | None = None, device: str | None = None,
    limit: int | None = None, embedding: str | None = None,
    features: str | None = None, guidance_embedding: str | None = None, arm: str | None = None,
    attack: Part | Sequence[Part] | None = None, budget: Sequence[int] | None = None,
    prior: Part | None = None, working_size: int | None = None,
    target_training: Training | Mapping[str, Any] | None = None,
    evaluator_training: Training | Mapping[str, Any] | None = None,
    public_training: Training | Mapping[str, Any] | None = None,
    adaptation: Adaptation | Mapping[str, Any] | None = None, shadows: int | str | None = None,
    recipe: str | None = None, shadow_pairs: int | None = None, adapt_shadows: bool | None = None,
    exposure_embedding: str | None = None, exposure_nearest: int | None = None,
    keep_shadows: bool | None = None, workers: int | None = None, threads: int | None = None,
    ray: str | None = None, images: Pictures | None = None,
    hash_ids: bool | None = None, memory: int | None = None,
    pairs: Sequence[PairMeasure] | None = None, fdr: float | None = None,
    log: Sequence[LoggerName] | None = None, fail_on: str | Sequence[str] | None = None,
    out: Path | str | None = None, reporter: Reporter | None = None,
) -> AuditResult:  # fmt: skip
    """Audit a classifier; without ``private`` the embedded digits are audited.

    Every argument but the last two is a field of :class:`inversight.settings.AuditSettings`, which
    says what it means. Where it is None the preset or else the field's default holds. ``out`` is the
    run folder, by default ``runs/audit-DATE-TIME``, and ``reporter`` receives progress and messages.

    Raises:
        InputError: something given is wrong; nothing has been written.
        StageError: a stage failed; what is finished can be resumed.
    """
    given = {k: v for k, v in locals().items() if v is not None and k not in ("out", "reporter")}
    reporter = reporter or Quiet()
    settings = resolve(given)
    _check_ray(ray, settings)
    check_loggers(settings.log)
    folder = Path(out) if out is not None else default_folder()
    check_new_folder(folder, needed_bytes=0)
    # Beside the run folder, of which nothing is written before all inputs are known to be right.
    cache = folder.with_name(f".{folder.name}.{DECODED}")
    try:
        with (
            using_threads(settings.threads or usable_threads()),
            with_cluster(Plan.prepare(settings, reporter, cache)) as plan,
        ):
            return _begin(plan, folder, cache, reporter)
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def _begin(plan: Plan, folder: Path, cache: Path, reporter: Reporter) -> AuditResult:
    reporter.say("Timing a few steps of every stage, to say how long the audit takes ...")
    forecast = estimate(plan)
    check_new_folder(folder, needed_bytes=forecast.disk_bytes)
    plan, left_out = decide_shadows(plan, forecast, folder)
    forecast = with_stage_beside(plan, forecast)
    reporter.say(plan.announcement(folder, forecast))
    if left_out is not None:
        reporter.say(left_out)
    remedy = f"continue with --resume {folder}"
    manifest = plan.manifest() | {"stage_threads": forecast.threads, "beside": forecast.beside}
    with disk_remedy(str(folder), remedy), Run.create(folder, manifest) as run:
        if cache.is_dir():
            cache.replace(folder / DECODED)
        return _execute(plan, run, reporter)


def _execute(plan: Plan, run: Run, reporter: Reporter) -> AuditResult:
    """Run what is left of an audit; then nothing needs the decoded images any more."""
    result = execute(plan, run, reporter)
    shutil.rmtree(run.path / DECODED, ignore_errors=True)
    return result


def resume(
    folder: Path | str, *, ray: str | None = None, reporter: Reporter | None = None
) -> AuditResult:
    """Go on with a run that was stopped; its tables are those that it would have had.

    ``ray``: see :class:`inversight.settings.AuditSettings`; None: as when it began.

    Raises:
        RunError: not a run, in use, or its inputs have changed.
    """
    reporter = reporter or Quiet()
    path = Path(folder)
    manifest = read_manifest(path)
    if "part_of" in manifest:
        raise RunError(
            f"--resume {path}: is part of a comparison of defences; run the same `inversight "
            "defend` again, which goes on where it stopped"
        )
    # Opened before anything that takes long: another process may be working on it.
    with (
        disk_remedy(str(path), f"continue with --resume {path}"),
        Run.open(path) as run,
        using_threads(manifest.get("threads") or usable_threads()),
    ):
        given = manifest["given"] | ({} if ray is None else {"ray": ray})
        _check_ray(ray, settings := resolve(given))
        check_loggers(settings.log)
        plan = Plan.prepare(settings, reporter, path / DECODED)
        check_unchanged(plan.manifest(), manifest, path)
        with with_cluster(plan) as joined:
            reporter.say(f"Resuming {path}")
            return _execute(joined, run, reporter)


def _check_ray(given: str | None, settings: AuditSettings) -> None:
    """Refuse a cluster for nothing.

    Raises:
        ConfigError: there are no shadow models.
    """
    if given is not None and settings.shadows == 0:
        raise ConfigError("--ray runs shadow models, and --shadows is 0; leave one of the two out")


def default_folder() -> Path:
    """Return ``runs/audit-DATE-TIME`` below the current folder."""
    return Path("runs") / f"audit-{datetime.datetime.now():%Y%m%d-%H%M%S}"
