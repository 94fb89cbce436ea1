"""The command ``score``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from inversight.cli.launch import require_one_process, running
from inversight.cli.options import Network, given, refuse_given, setting_options
from inversight.cli.printing import finish
from inversight.core.errors import ConfigError

_OPTIONS = (
    "private", "holdout", "embedding", "features", "public", "evaluator", "classes", "trust_target",
    "allow_overlap", "size", "pairs", "fdr", "fail_on", "memory", "seed", "device",
)  # fmt: skip


@setting_options(*_OPTIONS, unset=_OPTIONS)
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
    require_one_process("score")
    from inversight.pipeline.score import resume_scoring
    from inversight.pipeline.score import score as run_score

    values = given({**options, "network": network})
    if resume is not None:
        ways = {k: values.pop(k) for k in ("device", "fail_on") if k in values}
        ignored = {"reconstructions": reconstructions, "out": out, "reuse": reuse, **values}
        refuse_given(ignored, "--resume RUN takes everything else from the run")
        with running(resume, f"inversight score --resume {resume}") as terminal:
            result = resume_scoring(resume, reporter=terminal, **ways)
        finish(result)
        return
    if not reconstructions or out is None:
        missing = "--out" if reconstructions else "--reconstructions"
        raise ConfigError(f"{missing} is missing; see inversight score --help")
    with running(out, f"inversight score --resume {out}") as terminal:
        result = run_score(
            reconstructions=reconstructions, out=out, reuse=reuse, reporter=terminal, **values
        )
    finish(result)
