"""The command ``expose``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from inversight.cli.launch import running
from inversight.cli.options import given, refuse_given, setting_options
from inversight.cli.printing import finish, print_plan


@setting_options("shadows", "recipe", "adapt_shadows", "keep_shadows", "workers", "ray", unset=True)
def expose(
    run: Annotated[Path, typer.Argument(help="Run folder of an audit.")],
    models: Annotated[
        Path | None,
        typer.Option(
            help="CSV file of models that you have, columns model and members, instead of training any."
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what they would take and could find, and stop.")
    ] = False,
    **options: Any,
) -> None:
    """Add shadow models to an audit: which images came nearer because the model was trained on them?"""
    from inversight.pipeline import expose as pipeline

    if plan:
        refuse_given({**options, "models": models}, "--plan takes everything from the run")
        with running() as terminal:
            found = pipeline.plan_exposure(run, reporter=terminal)
        print_plan(found)
        return
    if models is not None:
        refuse_given(options, "--models trains nothing")
    remedy = f"inversight audit --resume {run}"
    if models is not None:
        remedy = f"inversight expose {run} --models {models}"
    with running(run, remedy) as terminal:
        if models is not None:
            result = pipeline.expose_models(run, models, reporter=terminal)
        else:
            result = pipeline.expose(run, reporter=terminal, **given(options))
    finish(result)
