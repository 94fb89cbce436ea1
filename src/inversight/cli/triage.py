"""The command ``triage``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from inversight.cli.launch import running
from inversight.cli.options import MODEL, model_spec, refuse_given, setting_options
from inversight.cli.printing import print_triage
from inversight.core.errors import ConfigError


@setting_options("private", "target", *MODEL, "device")
def triage(
    run: Annotated[
        Path | None,
        typer.Argument(help="A finished audit: its signals are compared with its results."),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="Earlier state of the target's training, oldest first; repeatable."),
    ] = None,
    learn: Annotated[
        Path | None,
        typer.Option(help="Audit of some of the classes (audit --limit N) to learn from."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for triage.parquet and triage.json.")
    ] = None,
    **options: Any,
) -> None:
    """Rank private images by how much they are at risk, in seconds, without an attack."""
    from inversight.core.run import check_new_folder
    from inversight.pipeline.triage import triage_private, triage_run, write_triage

    device, private, target = (options.pop(name) for name in ("device", "private", "target"))
    if run is not None:
        others = {"private": private, "target": target, "checkpoint": checkpoint, "learn": learn}
        refuse_given({**others, **options}, "triage RUN takes everything from the run")
    for name, value in {"private": private, "target": target, "out": out}.items():
        if run is None and value is None:
            raise ConfigError(
                f"--{name} is missing: give RUN, or --private DIR --target SPEC --out DIR"
            )
    if out is not None:
        check_new_folder(out, needed_bytes=10_000_000)
    if run is not None:
        found = triage_run(run)
    else:
        with running() as terminal:
            found = triage_private(
                private, model_spec(target, options), checkpoints=checkpoint or (),
                learn_from=learn, device=device, reporter=terminal,
            )  # fmt: skip
    if out is not None:
        write_triage(found, out)
    print_triage(found, out)
