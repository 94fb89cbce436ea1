"""The command ``audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from inversight.cli.launch import require_one_process, running
from inversight.cli.options import Assignments, audit_settings, setting_options
from inversight.cli.printing import finish
from inversight.core.config import is_settings, settings_fields
from inversight.core.errors import ConfigError
from inversight.settings import AuditSettings

_OPTIONS = [
    name
    for name, field in settings_fields(AuditSettings).items()
    if not is_settings(field.annotation)
]


@setting_options(*_OPTIONS, unset=_OPTIONS)
def audit(
    config: Annotated[
        Path | None, typer.Option(help="YAML file, as --print-config prints it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default runs/audit-DATE-TIME.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this stopped run.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print every setting with its meaning.")
    ] = False,
    set_: Assignments = None,
    **options: Any,
) -> None:
    """Audit a classifier; without arguments, a demonstration on handwritten digits."""
    require_one_process("audit")
    values = audit_settings(options, config, set_)
    if print_config:
        from inversight.settings import documented, resolve

        typer.echo(documented(resolve(values)))
        return
    if resume is not None and (values or out is not None):
        raise ConfigError("--resume RUN takes its settings from the run; leave the others out")
    from inversight.pipeline.audit import audit as run_audit
    from inversight.pipeline.audit import default_folder
    from inversight.pipeline.audit import resume as resume_run

    folder = resume or out or default_folder()
    with running(folder, f"inversight audit --resume {folder}") as terminal:
        if resume is not None:
            result = resume_run(resume, reporter=terminal)
        else:
            result = run_audit(out=folder, reporter=terminal, **values)
    finish(result)
