"""Small labelled feature sets and checks for the tests of the scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inversight.embeddings.base import Features
from inversight.scores import ScoreResult, Summary
from tests.draws import rng


def features(
    values: Tensor | Sequence[Sequence[float]], labels: Sequence[int] | Tensor | None = None,
    ids: Sequence[str] | None = None, prefix: str = "p",
) -> Features:  # fmt: skip
    """Return one block; class 0 and ids that sort in row order, unless given."""
    block = torch.as_tensor(values, dtype=torch.float32)
    names = tuple(ids or (f"{prefix}{i:04d}" for i in range(len(block))))
    labels = [0] * len(block) if labels is None else labels
    return Features((block,), torch.as_tensor(labels, dtype=torch.int64), names)


def gaussian(
    n: int, dimensions: int, *, classes: int = 1, seed: int = 0, prefix: str = "p", shift: float = 0
) -> Features:
    """Return normal features in two blocks, labels interleaved."""
    drawn, half = rng(seed), dimensions // 2
    values = torch.randn(n, dimensions, generator=drawn) + shift
    ids = tuple(f"{prefix}{i:04d}" for i in torch.randperm(n, generator=drawn).tolist())
    return Features((values[:, :half], values[:, half:]), torch.arange(n) % classes, ids)


def joined(left: Features, right: Features) -> Features:
    """Return the rows of both."""
    return Features(
        tuple(torch.cat(pair) for pair in zip(left.blocks, right.blocks, strict=True)),
        torch.cat([left.labels, right.labels]),
        left.ids + right.ids,
    )


def shuffled(given: Features, seed: int = 0) -> tuple[Features, Tensor]:
    """Return the rows in another order, and that order."""
    order = torch.randperm(len(given), generator=rng(seed))
    return given.select(order), order


def value(found: Summary | ScoreResult, key: str = "") -> float:
    """Return the value of a summary, or of a result's ``key`` (its first one)."""
    if isinstance(found, ScoreResult):
        found = found.summary[key or next(iter(found.summary))]
    assert found.value is not None
    return found.value


def interval(found: Summary) -> tuple[float, float]:
    """Return the bounds of a summary that has an interval around its value."""
    assert found.low is not None and found.high is not None
    assert found.low <= value(found) <= found.high
    return found.low, found.high
