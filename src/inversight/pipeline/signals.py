"""Signals of the target, kind and twins of each private image, joined to the scores in the ledger."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from inversight.core.errors import StageError
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
    folder: Path, target: Target, private: ImageSet, *, scores: Path, seen: bool, context: Context
) -> None:
    """Write the signals to ``folder``, and the ledger in ``scores`` with them joined to it.

    Args:
        scores: folder of the stage that scored the same private images.
        seen: the network of the scoring distance was trained on the private images.

    Raises:
        StageError: the target returned a NaN or an infinity.
    """
    near = read_scored(scores)[0].neighbour_distance
    if near is None:
        raise StageError(f"{scores}: holds no distances between private images")
    progress = context.reporter.stage("signals")
    private = private.select(torch.tensor(sorted(range(len(private)), key=private.ids.__getitem__)))
    found = signals(target, private, progress=progress)
    twins = find_twins(private, progress=progress)
    words = kinds(private.labels, found.values, twins, near, seen=seen)
    table = signals_table(found, private, twins).assign(
        neighbour_distance=near.numpy(), kind=pd.array(words, dtype="string")
    )
    table = hidden(table, context.hide)
    table.to_parquet(folder / SIGNALS_FILE, index=False)
    join(pd.read_parquet(scores / LEDGER), table).to_parquet(folder / LEDGER, index=False)


def join(samples: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return ``samples`` followed by the columns ``JOINED`` of ``table``, matched by id."""
    by_id = table.set_index("id")
    new = {name: by_id[name].reindex(samples["id"]).array for name in JOINED if name in table}
    return samples.assign(**new)


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


def signals_of(table: pd.DataFrame) -> dict[str, Tensor]:
    """Return the signals among a table's columns, each (N,) float64."""
    return {
        name: torch.tensor(table[name].to_numpy(dtype="float64"), dtype=torch.float64)
        for name in SIGNALS
        if name in table
    }
