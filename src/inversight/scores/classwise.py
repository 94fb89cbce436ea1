"""Class by class, block by block: what keeps scores independent of row order and of memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from inversight.core.errors import ConfigError
from inversight.embeddings.base import Features

TIE = 1e-8
"""Distances this close to each other, relatively, are equal. It lies above the error of
``squared_distances`` and below the resolution of float32 features, so that which of two identical
images counts as nearer is decided by a rule and never by rounding."""

# squared_distances holds the result, its scale and what compares them beside each other.
_BYTES_PER_PAIR = 40


def rows_by_class(features: Features) -> dict[int, Tensor]:
    """Label -> positions (int64) of its rows in the order of their ids; labels ascend."""
    labels = features.labels.tolist()
    rows: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for position in sorted(range(len(labels)), key=features.ids.__getitem__):
        rows[labels[position]].append(position)
    return {label: torch.tensor(positions) for label, positions in rows.items()}


def take(features: Features, rows: Tensor) -> tuple[Tensor, ...]:
    """The blocks of the rows at positions ``rows``, without their labels and ids."""
    return tuple(block[rows.to(block.device)] for block in features.blocks)


def bounded(features: Features, rows: Tensor, others: int, memory: int) -> Iterator[Tensor]:
    """``rows`` in consecutive parts whose distances to ``others`` rows fit in ``memory`` bytes.

    Counts the copied features too; a part has at least one row, whatever ``memory`` is.

    Raises:
        ConfigError: ``memory`` is not positive.
    """
    if memory <= 0:
        raise ConfigError(f"memory: expected a positive number of bytes, found {memory}")
    copied = sum(block.shape[1] * block.element_size() for block in features.blocks)
    yield from torch.split(rows, max(1, memory // (others * _BYTES_PER_PAIR + copied)))
