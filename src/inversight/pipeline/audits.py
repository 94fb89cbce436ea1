"""Whole audits: begun, and gone on with."""

from __future__ import annotations

import datetime
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from inversight.core.console import Quiet, Reporter
from inversight.core.errors import RunError
from inversight.core.run import Run, check_new_folder, disk_remedy, read_manifest
from inversight.pipeline.execution import execute
from inversight.pipeline.plan import Plan, check_unchanged
from inversight.pipeline.result import AuditResult
from inversight.settings import resolve


def audit(
    *, out: Path | str | None = None, reporter: Reporter | None = None, **given: Any
) -> AuditResult:
    """Audit a classifier; without ``private`` the embedded digits are audited.

    ``given`` are fields of :class:`inversight.settings.AuditSettings` (``private``, ``public``,
    ``holdout``, ``target``, ``preset``, ``seed``, ...), as on the command line.

    Raises:
        InputError: something given is wrong; nothing has been written.
        StageError: a stage failed; what is finished can be resumed.
    """
    reporter = reporter or Quiet()
    settings = resolve(given)
    folder = Path(out) if out is not None else default_folder()
    check_new_folder(folder, needed_bytes=0)
    plan = Plan.prepare(settings, reporter)
    reporter.say("Timing a few steps of every stage, to say how long the audit takes ...")
    forecast = plan.forecast()
    check_new_folder(folder, needed_bytes=forecast.disk_bytes)
    reporter.say(plan.announcement(folder, forecast))
    with _resumable(folder), Run.create(folder, plan.manifest()) as run:
        return execute(plan, run, reporter)


def resume(folder: Path | str, *, reporter: Reporter | None = None) -> AuditResult:
    """Go on with a run that was stopped; it ends with the tables it would have had.

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
    with _resumable(path), Run.open(path) as run:
        plan = Plan.prepare(resolve(manifest["given"]), reporter)
        check_unchanged(plan, manifest, path)
        reporter.say(f"Resuming {path}")
        return execute(plan, run, reporter)


def _resumable(folder: Path) -> AbstractContextManager[None]:
    """Say how to go on if the disk fills up outside of a stage."""
    return disk_remedy(str(folder), f"continue with --resume {folder}")


def default_folder() -> Path:
    """``runs/audit-DATE-TIME`` below the current folder."""
    return Path("runs") / f"audit-{datetime.datetime.now():%Y%m%d-%H%M%S}"
