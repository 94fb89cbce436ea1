"""Signals of the target, kind and twins of each private image, joined to the scores in the ledger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from inversight.core.errors import StageError
from inversight.core.progress import Progress, silent
from inversight.data import ImageSet
from inversight.models.target import Target
from inversight.pipeline.context import Context
from inversight.pipeline.scored import hidden, read_scored
from inversight.risk.kinds import kinds
from inversight.risk.signals import SIGNALS, Signals, signals
from inversight.risk.twins import Twins, find_twins

LEDGER = "samples.parquet"
SIGNALS_FILE = "signals.parquet"
JOINED = (*SIGNALS, "kind", "twins")
"""Columns that are added to the ledger where they are known."""


def signals_stage(
    folder: Path,
    target: Target,
    private: ImageSet,
    *,
    scores: Path,
    seen: bool,
    hide: Callable[[str], str],
    context: Context,
) -> None:
    """Write the signals to ``folder``, and the ledger in ``scores`` with them joined to it.

    Args:
        scores: folder of the stage that scored the same private images.
        seen: the network of the scoring distance was trained on the private images.
        hide: what becomes of names of images and classes.
    """
    near = read_scored(scores)[0].neighbour_distance
    if near is None:
        raise StageError(f"{scores}: holds no distances between private images")
    progress = context.reporter.stage("signals")
    columns = ledger_columns(target, private, neighbour_distance=near, seen=seen, progress=progress)
    table = hidden(columns, hide)
    table.to_parquet(folder / SIGNALS_FILE, index=False)
    samples = pd.read_parquet(scores / LEDGER)
    join(samples, table).to_parquet(folder / LEDGER, index=False)


def ledger_columns(
    target: Target,
    private: ImageSet,
    *,
    neighbour_distance: Tensor,
    seen: bool,
    progress: Progress = silent,
) -> pd.DataFrame:
    """Return one row for each private image, by id: signals, ``neighbour_distance``, ``kind``, ``twins``.

    neighbour_distance: (N,) float64 in the scoring distance, of the private images in the order of
    their ids. seen: the network of that distance was trained on the private images.

    Raises:
        StageError: the target returned a NaN or an infinity.
    """
    private = private.select(torch.tensor(sorted(range(len(private)), key=private.ids.__getitem__)))
    found = signals(target, private, progress=progress)
    twins = find_twins(private, progress=progress)
    words = kinds(private.labels, found.values, twins, neighbour_distance, seen=seen)
    return signals_table(found, private, twins).assign(
        neighbour_distance=neighbour_distance.numpy(), kind=pd.array(words, dtype="string")
    )


def signals_table(found: Signals, private: ImageSet, twins: Twins) -> pd.DataFrame:
    """Return ``id``, ``label``, the signals and ``twins``, one row for each private image, by id."""
    return pd.DataFrame(
        {
            "id": private.ids,
            "label": [private.classes[y] for y in private.labels.tolist()],
            **{name: values.numpy() for name, values in found.values.items()},
            "twins": pd.array(twins.names(private.ids), dtype="string"),
        }
    ).sort_values("id", ignore_index=True)


def join(samples: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return ``samples`` followed by the columns ``JOINED`` of ``table``, matched by id."""
    by_id = table.set_index("id")
    new = {name: by_id[name].reindex(samples["id"]).array for name in JOINED if name in table}
    return samples.assign(**new)


def signals_of(table: pd.DataFrame) -> dict[str, Tensor]:
    """Return the signals among a table's columns, each (N,) float64."""
    return {
        name: torch.tensor(table[name].to_numpy(dtype="float64"), dtype=torch.float64)
        for name in SIGNALS
        if name in table
    }
