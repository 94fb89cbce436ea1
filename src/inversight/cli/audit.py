"""The command ``audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from inversight.cli.launch import running
from inversight.cli.options import SetOption, assigned, given, setting_options
from inversight.cli.printing import finish
from inversight.core.config import is_settings, read_yaml, settings_fields
from inversight.core.errors import ConfigError
from inversight.settings import AuditSettings, documented, lay, resolve

_OPTIONS = [
    name
    for name, field in settings_fields(AuditSettings).items()
    if not is_settings(field.annotation)
]


@setting_options(*_OPTIONS, unset=True)
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
    set_: SetOption = None,
    **options: Any,
) -> None:
    """Audit a classifier; without arguments, a demonstration on handwritten digits."""
    # Options go before assignments, which go before the file.
    values = lay({} if config is None else read_yaml(config), assigned(set_))
    values = lay(values, given(options))
    if print_config:
        typer.echo(documented(resolve(values)))
        return
    if resume is not None and (values.keys() - {"ray"} or out is not None):
        raise ConfigError(
            "--resume RUN takes its settings from the run; leave the others out, except --ray"
        )
    from inversight.pipeline import audit as pipeline

    folder = resume or out or pipeline.default_folder()
    with running(folder, f"inversight audit --resume {folder}") as terminal:
        if resume is not None:
            result = pipeline.resume(resume, **values, reporter=terminal)
        else:
            result = pipeline.audit(out=folder, reporter=terminal, **values)
    finish(result)
