"""The commands ``report`` and ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write RUN/report.html and the model card again from the run's tables."""
    import webbrowser

    from inversight.pipeline.report import report as run_report

    file = run_report(run)
    typer.echo(str(file))
    if open_ and not webbrowser.open(file.resolve().as_uri()):
        typer.echo("no browser was found here; open the file above in one", err=True)


def compare(
    first: Annotated[Path, typer.Argument(help="Run folder.")],
    second: Annotated[Path, typer.Argument(help="Another run folder.")],
) -> None:
    """Print two runs side by side."""
    from inversight.report import compare as compare_runs
    from inversight.report import render_text

    typer.echo(render_text(compare_runs(first, second)))
