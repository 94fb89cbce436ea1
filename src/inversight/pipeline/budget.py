"""Risk against queries: each attack run again with fewer images sent to the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from inversight.core.run import read_object, write_json
from inversight.pipeline.scored import read_nearness
from inversight.scores.result import Summary

BUDGET = "budget.parquet"
"""Risk against queries, if --budget asks for it."""
CURVES = ("covered", "ddcs_best", "ddcs_average")
"""Measures that metrics.json has against queries too, if --budget asks for it."""
MEASURES = (*CURVES, "nearest_distance")


@dataclass(frozen=True)
class Rerun:
    """An attack held to a number of queries.

    budget: images that may be sent, None for the attack as the audit ran it. folder: the stage that
    holds it, None if the budget is too small for any attempt.
    """

    attack: str
    budget: int | None
    folder: Path | None


def budget_stage(folder: Path, reruns: Sequence[Rerun], scores: Path) -> None:
    """Write budget.parquet, and metrics.json with the curves under ``within``, to ``folder``.

    ``scores`` is the folder of the stage that scored the reruns.
    """
    nearness = read_nearness(scores)
    rows = [_row(one, nearness) for one in reruns]
    pd.DataFrame(rows).to_parquet(folder / BUDGET, index=False)
    metrics = read_object(scores / "metrics.json")
    for key in CURVES:
        metrics[key]["within"] = [
            {name: row[name] for name in ("attack", "budget", "queries", "reason")}
            | {"value": row[key], "low": row.get(f"{key}_low"), "high": row.get(f"{key}_high")}
            for row in rows
        ]
    write_json(folder / "metrics.json", metrics)


def _row(rerun: Rerun, nearness: Mapping[str, Mapping[str, Summary]]) -> dict[str, Any]:
    """Return the row of budget.parquet; ``nearness`` holds the scores of each set by its name."""
    row = {"attack": rerun.attack, "budget": rerun.budget, "queries": None, "reason": None}
    row |= {"reconstructions": 0, **dict.fromkeys(MEASURES)}
    if rerun.folder is None:
        return row | {"reason": "too few queries for one candidate of each class"}
    facts = read_object(rerun.folder / "facts.json")
    if "reason" in facts:
        return row | {"reason": facts["reason"]}
    found = nearness.get(rerun.folder.name) or nearness[rerun.attack]
    return row | {
        "queries": facts["queries"],
        "reconstructions": found["covered"].extra["reconstructions"],
        **{name: found[name].value for name in MEASURES},
        **{
            f"{name}_{end}": getattr(found[name], end) for name in CURVES for end in ("low", "high")
        },
    }
