"""Precision, recall, density and coverage of one class, as Naeem et al. define them, in loops."""

from __future__ import annotations

Point = list[int]


def prdc_loop(real: list[Point], fake: list[Point], k: int) -> dict[str, float]:
    """Takes whole-number coordinates, for which distances to the rim of a ball are exact."""
    balls, fake_balls = _balls(real, k), _balls(fake, k)
    held = [sum(_distance(f, r) < radius for r, radius in balls) for f in fake]
    recalled = [any(_distance(r, f) < radius for f, radius in fake_balls) for r in real]
    covered = [any(_distance(r, f) < radius for f in fake) for r, radius in balls]
    return {
        "precision": sum(n > 0 for n in held) / len(fake),
        "recall": sum(recalled) / len(real),
        "density": sum(held) / (k * len(fake)),
        "coverage": sum(covered) / len(real),
    }


def _balls(points: list[Point], k: int) -> list[tuple[Point, int]]:
    """Return each point with its squared distance to the k-th nearest other one."""
    distances = [sorted(_distance(p, q) for q in points) for p in points]
    return [
        (p, found[k]) for p, found in zip(points, distances, strict=True)
    ]  # found[0] is its own


def _distance(left: Point, right: Point) -> int:
    return sum((a - b) ** 2 for a, b in zip(left, right, strict=True))
