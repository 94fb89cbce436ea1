"""The commands ``report`` and ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Write RUN/report.html again from the run's tables, without pictures."""
    from inversight.pipeline.report import report as run_report

    typer.echo(str(run_report(run)))


def compare(
    first: Annotated[Path, typer.Argument(help="Run folder.")],
    second: Annotated[Path, typer.Argument(help="Another run folder.")],
) -> None:
    """Print two runs side by side."""
    from inversight.report import compare as compare_runs
    from inversight.report import render_text

    typer.echo(render_text(compare_runs(first, second)))
