"""Nearest distances with nothing leaked, and the calibration as slow, obvious loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Distances = tuple[NDArray[np.float64], NDArray[np.int64]]


SHAPES: dict[str, Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "skewed": lambda rng, shape: np.log(rng.gamma(2.0, size=shape)),
    "heavy": lambda rng, shape: rng.standard_t(3, size=shape),
}
"""Noise; skewed has a long tail towards small distances, heavy has outliers on both sides."""


def null(
    seed: int, classes: int, private: int, holdout: int, shape: str = "normal"
) -> tuple[Distances, Distances]:
    """Return private and holdout images that are exchangeable within classes.

    Classes differ in how near (e-fold) and how widely spread (up to threefold) they are.
    """
    rng = np.random.default_rng(seed)
    place = rng.normal(size=classes)
    spread = 0.3 * np.exp(0.5 * rng.normal(size=classes))

    def draw(each: int) -> Distances:
        noise = SHAPES[shape](rng, (classes, each))
        values = np.exp(place[:, None] + spread[:, None] * noise)
        return values.ravel(), np.repeat(np.arange(classes), each)

    return draw(private), draw(holdout)


def bursts(
    seed: int, classes: int, private: tuple[int, int], holdout: tuple[int, int], within: float
) -> tuple[tuple[Distances, Distances], tuple[Tensor, Tensor]]:
    """Return private and holdout images whose units are exchangeable within classes, and the units.

    ``private`` and ``holdout``: units of a class, and images of a unit. within: share of a class's
    variance that lies within units, near 0 for near-copies.
    """
    rng = np.random.default_rng(seed)
    place = rng.normal(size=(classes, 1, 1))
    spread = 0.3 * np.exp(0.5 * rng.normal(size=(classes, 1, 1)))

    def draw(units: int, each: int) -> tuple[Distances, Tensor]:
        noise = within**0.5 * rng.normal(size=(classes, units, each))
        noise += (1 - within) ** 0.5 * rng.normal(size=(classes, units, 1))
        values = np.exp(place + spread * noise).ravel()
        labels = np.repeat(np.arange(classes), units * each)
        return (values, labels), torch.arange(classes * units).repeat_interleave(each)

    (ours, own), (theirs, other) = draw(*private), draw(*holdout)
    return (ours, theirs), (own, other)


def normal_score(value: float, others: list[float], pooled: float, weight: float) -> float:
    """How far ``value`` lies from ``others``, whose variance counts with ``weight`` of ``pooled``."""
    n, mean = len(others), sum(others) / len(others)
    squares = sum((y - mean) ** 2 for y in others)
    freedom = weight + n - 1
    scale = math.sqrt((weight * pooled + squares) / freedom * (1 + 1 / n))
    t = (value - mean) / scale
    size = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return math.copysign(size, t)


def p_values_by_loops(private: Distances, holdout: Distances) -> list[float]:
    """The definition, image by image and one holdout image left out at a time."""
    classes: dict[int, list[float]] = {}
    for distance, label in zip(*holdout, strict=True):
        classes.setdefault(int(label), []).append(math.log(distance))

    def pooled(but: int) -> float:
        rest = [values for label, values in classes.items() if label != but]
        freedom = sum(len(values) - 1 for values in rest)
        return sum(len(y) * float(np.var(y)) for y in rest) / freedom if freedom else 0.0

    def score(value: float, label: int, left_out: int) -> float:
        others = classes[label][:left_out] + classes[label][left_out + 1 :]
        return normal_score(value, others, pooled(label), 2.0 if len(classes) > 1 else 0.0)

    pool = [score(y, label, k) for label, own in classes.items() for k, y in enumerate(own)]
    found = []
    for distance, label in zip(*private, strict=True):
        scores = [score(math.log(distance), label, k) for k in range(len(classes[label]))]
        ways = [(1 + sum(z <= own for z in pool)) / (len(pool) + 1) for own in scores]
        found.append(sum(ways) / len(ways))
    return found
