"""The command ``score``."""

from __future__ import annotations

from dataclasses import replace
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
    from inversight.pipeline.score_folders import Against, resume_scoring, score_folders

    values = given({**options, "network": network})
    rest = {k: values.pop(k) for k in ("seed", "device", "memory", "fdr", "fail_on") if k in values}
    if resume is not None:
        if reconstructions or out or reuse or values:
            raise ConfigError("--resume RUN takes everything from the run; leave the others out")
        ways = {"device": rest.get("device", "auto"), "fail_on": rest.get("fail_on", ())}
        with running(resume, f"inversight score --resume {resume}") as terminal:
            finish(resume_scoring(resume, reporter=terminal, **ways))
        return
    if not reconstructions or out is None:
        missing = "--out" if reconstructions else "--reconstructions"
        raise ConfigError(f"{missing} is missing; see inversight score --help")
    trust: dict[str, Any] = {"trust": True} if values.pop("trust_target", False) else {}
    if reuse is not None:
        refuse_given(values, "--reuse takes everything else from the run")
        against = replace(Against.of_run(reuse), **trust)
    elif "private" not in values:
        raise ConfigError("--private is missing: give the folder of private images, or --reuse RUN")
    else:
        distance = values.setdefault("embedding", "lpips-vgg")
        values.setdefault("features", "inception" if distance.startswith("lpips") else distance)
        against = Against(**values, **trust)
    with running(out, f"inversight score --resume {out}") as terminal:
        result = score_folders(
            against, reconstructions, out=out, reuse=reuse, reporter=terminal,
            **{"memory": 2 << 30, "seed": 0, "device": "auto", **rest},
        )  # fmt: skip
    finish(result)
