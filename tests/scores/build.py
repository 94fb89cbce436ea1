"""Small labelled feature sets for the tests of the scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inversight.embeddings.base import Features


def features(
    values: Tensor | Sequence[Sequence[float]],
    labels: Sequence[int] | Tensor | None = None,
    ids: Sequence[str] | None = None,
    prefix: str = "p",
) -> Features:
    """One block; class 0 and ids that sort in row order, unless given."""
    block = torch.as_tensor(values, dtype=torch.float32)
    if labels is None:
        labels = [0] * len(block)
    if ids is None:
        ids = [f"{prefix}{i:04d}" for i in range(len(block))]
    return Features((block,), torch.as_tensor(labels, dtype=torch.int64), tuple(ids))


def gaussian(
    n: int, dimensions: int, *, classes: int = 1, seed: int = 0, prefix: str = "p", shift: float = 0
) -> Features:
    """Normal features in two blocks, labels interleaved."""
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(n, dimensions, generator=rng) + shift
    half = dimensions // 2
    labels = torch.arange(n) % classes
    ids = tuple(f"{prefix}{i:04d}" for i in torch.randperm(n, generator=rng).tolist())
    return Features((values[:, :half], values[:, half:]), labels, ids)


def shuffled(given: Features, seed: int = 0) -> tuple[Features, Tensor]:
    """The rows in another order, and that order."""
    order = torch.randperm(len(given), generator=torch.Generator().manual_seed(seed))
    return given.select(order), order
