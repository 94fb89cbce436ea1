"""Measures against queries, as `--budget` asks for them."""

from __future__ import annotations

from typing import Any

BUDGET = "budget.parquet"
"""Risk against queries, if --budget asks for it."""
CURVES = ("covered", "ddcs_best", "ddcs_average")
"""Measures that metrics.json has against queries too, if --budget asks for it."""


def with_curves(
    metrics: dict[str, dict[str, Any]], rows: list[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """``metrics`` with what ``rows`` of budget.parquet say of a measure beside it, as ``within``."""
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
    return found
