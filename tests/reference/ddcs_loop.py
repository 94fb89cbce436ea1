"""DDCS by its definition: plain Python loops over plain lists, one pair at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Row:
    best: float
    average: float
    assigned: int
    nearest_distance: float
    nearest_reconstruction: str | None


def ddcs_loop(
    private: list[tuple[str, int, list[float]]],
    reconstructions: list[tuple[str, int, list[float]]],
    floor: float = 1e-6,
) -> dict[str, Row]:
    """Both sides are (id, label, features); the result is by private id."""
    assigned: dict[str, list[float]] = {name: [] for name, _, _ in private}
    for _, label, features in reconstructions:
        choices = [
            (_distance(features, theirs), name)
            for name, their_label, theirs in private
            if their_label == label
        ]
        distance, owner = _first_smallest(choices)
        assigned[owner].append(distance)

    rows = {}
    for name, label, features in private:
        found = [
            (_distance(features, theirs), other)
            for other, their_label, theirs in reconstructions
            if their_label == label
        ]
        nearest: tuple[float, str | None] = _first_smallest(found) if found else (math.nan, None)
        mine = assigned[name]
        rows[name] = Row(
            best=1.0 / max(min(mine), floor) if mine else 0.0,
            average=1.0 / max(sum(mine) / len(mine), floor) if mine else 0.0,
            assigned=len(mine),
            nearest_distance=nearest[0],
            nearest_reconstruction=nearest[1],
        )
    return rows


def _distance(left: list[float], right: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(left, right, strict=True))


def _first_smallest(choices: list[tuple[float, str]]) -> tuple[float, str]:
    smallest, _ = min(choices)
    ties = [choice for choice in choices if choice[0] <= smallest * (1 + 1e-8)]
    return min(ties, key=lambda choice: choice[1])
