"""The commands ``weights list``, ``weights check`` and ``weights import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from inversight.core.errors import WeightsError


def weights_list() -> None:
    """List the published weights, what uses them, and whether they are on this machine."""
    from inversight.embeddings.weights import KNOWN, folder, status

    table = Table("name", "used by", "published file", "state", title=str(folder()))
    for known in KNOWN.values():
        table.add_row(known.name, known.used_by, known.file, status(known.name))
    Console().print(table)


def weights_check() -> None:
    """Compare the checksum of every weights file; exit with 2 if one has changed."""
    from inversight.embeddings.weights import KNOWN, status

    for name in KNOWN:
        state = status(name)
        typer.echo(f"{name}: {state}")
        if state not in ("ok", "missing"):
            raise WeightsError(f"weights {name}: {state}; import them again")


def weights_import(file: Annotated[Path, typer.Argument(help="The published file.")]) -> None:
    """Check a published weights file and keep a copy."""
    from inversight.embeddings.weights import import_weights

    typer.echo(str(import_weights(file)))
