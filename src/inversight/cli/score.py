"""The command ``score``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from inversight.cli.launch import running
from inversight.cli.options import Network, given, refuse_given, setting_options
from inversight.cli.printing import finish
from inversight.core.errors import ConfigError

_OPTIONS = (
    "private", "holdout", "embedding", "features", "public", "evaluator", "classes", "trust_target",
    "allow_overlap", "size", "pairs", "fdr", "fail_on", "memory", "seed", "device",
)  # fmt: skip


@setting_options(*_OPTIONS, unset=True)
def score(
    reconstructions: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of reconstructions, one subfolder a class; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    reuse: Annotated[
        Path | None,
        typer.Option(
            help="A finished run whose private images, embeddings and reconstructions are used again, "
            "so that only the new reconstructions are compared."
        ),
    ] = None,
    network: Network = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this stopped scoring.")] = None,
    **options: Any,
) -> None:
    """Score folders of reconstructions, from any attack."""
    from inversight.pipeline import score as pipeline

    values = given({**options, "network": network})
    if resume is not None:
        ways = {k: values.pop(k) for k in ("device", "fail_on") if k in values}
        ignored = {"reconstructions": reconstructions, "out": out, "reuse": reuse, **values}
        refuse_given(ignored, "--resume RUN takes everything else from the run")
        folder, run = resume, partial(pipeline.resume_scoring, resume, **ways)
    elif not reconstructions or out is None:
        missing = "--out" if reconstructions else "--reconstructions"
        raise ConfigError(f"{missing} is missing; see inversight score --help")
    else:
        inputs: dict[str, Any] = {"reconstructions": reconstructions, "out": out, "reuse": reuse}
        folder, run = out, partial(pipeline.score, **inputs, **values)
    with running(folder, f"inversight score --resume {folder}") as terminal:
        result = run(reporter=terminal)
    finish(result)
