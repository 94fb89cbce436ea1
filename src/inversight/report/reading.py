"""Read the manifest, metrics and tables of a run folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from inversight.core.errors import RunError
from inversight.core.run import read_object
from inversight.report.formatting import mapping


def read_mapping(run: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in ``run/name``.

    Raises:
        RunError: ``run`` is not a run folder, or the file is missing (unfinished run) or damaged.
    """
    return read_object(_existing(run, name))


def read_table(run: Path, name: str, required: Iterable[str]) -> pd.DataFrame:
    """Return the Parquet table in ``run/name``, which must have the ``required`` columns.

    Raises:
        RunError: the file is missing (unfinished run), damaged, or lacks a column.
    """
    file = _existing(run, name)
    try:
        table = pd.read_parquet(file)
    except Exception as error:  # pyarrow's errors have no base class in common with pandas'
        reason = " ".join(str(error).split())
        raise RunError(f"{file}: cannot be read as a Parquet table ({reason})") from None
    missing = [column for column in required if column not in table.columns]
    if missing:
        raise RunError(
            f"{file}: expected the column {missing[0]}, found {', '.join(map(str, table.columns))}"
        )
    return table


def counts_of(facts: Any) -> dict[str, Any] | None:
    """Return the numbers of images and classes (None if not known) of an input of a manifest.

    None if the manifest has no number of images.
    """
    images, classes = (mapping(facts).get(name) for name in ("images", "classes"))
    if images is None:
        return None
    return {"images": images, "classes": len(classes) if isinstance(classes, list) else classes}


def counts_text(images: int, classes: int | None) -> str:
    """Return '100 images of 20 classes'."""
    return f"{images} images of {classes} classes" if classes else f"{images} images"


def _existing(run: Path, name: str) -> Path:
    if not (run / "run.json").is_file():
        raise RunError(f"{run}: not a run folder (no run.json); name the folder an audit wrote")
    file = run / name
    if not file.is_file():
        raise RunError(
            f"{run}: the run is not finished ({name} is missing); continue it with --resume {run}"
        )
    return file


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as dotted names with plain values; lists of mappings count from 0."""
    if isinstance(value, dict) and value:
        parts = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        parts = [(str(i), v) for i, v in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, below in parts:
        flat.update(flatten(below, f"{prefix}.{name}" if prefix else name))
    return flat
