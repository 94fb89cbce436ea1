"""Precision, recall, density and coverage of one class, as Naeem et al. define them, in loops."""

from __future__ import annotations

Point = list[int]


def prdc_loop(real: list[Point], fake: list[Point], k: int) -> dict[str, float]:
    """Whole-number coordinates, so that points on the rim of a ball are told exactly."""
    real_radius = [
        _kth(p, [q for j, q in enumerate(real) if j != i], k) for i, p in enumerate(real)
    ]
    fake_radius = [
        _kth(p, [q for j, q in enumerate(fake) if j != i], k) for i, p in enumerate(fake)
    ]
    precise = dense = recalled = covered = 0
    for f in fake:
        holding = sum(_distance(f, r) < radius for r, radius in zip(real, real_radius, strict=True))
        precise += holding > 0
        dense += holding
    for r, own_radius in zip(real, real_radius, strict=True):
        recalled += any(
            _distance(r, f) < radius for f, radius in zip(fake, fake_radius, strict=True)
        )
        covered += min(_distance(r, f) for f in fake) < own_radius
    return {
        "precision": precise / len(fake),
        "recall": recalled / len(real),
        "density": dense / (k * len(fake)),
        "coverage": covered / len(real),
    }


def _kth(point: Point, others: list[Point], k: int) -> int:
    return sorted(_distance(point, other) for other in others)[k - 1]


def _distance(left: Point, right: Point) -> int:
    return sum((a - b) ** 2 for a, b in zip(left, right, strict=True))
