"""Risk against queries: each attack run again with fewer images sent to the target."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from inversight.core.run import write_json
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

    def row(self, nearness: Mapping[str, Mapping[str, Summary]]) -> dict[str, Any]:
        """Return the row of budget.parquet; ``nearness`` holds the scores of each set by its name."""
        row: dict[str, Any] = {
            "attack": self.attack,
            "budget": self.budget,
            "queries": None,
            "reason": None,
        }
        row |= {"reconstructions": 0, **dict.fromkeys(MEASURES)}
        if self.folder is None:
            return row | {"reason": "too few queries for one candidate of each class"}
        facts = json.loads((self.folder / "facts.json").read_text())
        if "reason" in facts:
            return row | {"reason": facts["reason"]}
        cut = self.folder.name != f"attack-{self.attack}"
        found = nearness[self.folder.name if cut else self.attack]
        row |= {"queries": facts["queries"]}
        row |= {"reconstructions": found["covered"].extra["reconstructions"]}
        row |= {name: found[name].value for name in MEASURES}
        return row | {
            f"{name}_{end}": getattr(found[name], end) for name in CURVES for end in ("low", "high")
        }


def budget_stage(
    folder: Path,
    reruns: Sequence[Rerun],
    nearness: Mapping[str, Mapping[str, Summary]],
    metrics: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write budget.parquet, and metrics.json with the curves under ``within``, to ``folder``."""
    rows = [one.row(nearness) for one in reruns]
    pd.DataFrame(rows).to_parquet(folder / BUDGET, index=False)
    found = {key: dict(value) for key, value in metrics.items()}
    for key in CURVES:
        found[key]["within"] = [
            {
                **{name: row[name] for name in ("attack", "budget", "queries")},
                "value": row[key],
                **{end: row.get(f"{key}_{end}") for end in ("low", "high")},
                "reason": row["reason"],
            }
            for row in rows
        ]
    write_json(folder / "metrics.json", found)
