"""Rows class by class and block by block, so that scores do not depend on row order or memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from inversight.core.errors import ConfigError
from inversight.embeddings.base import Features

TIE = 1e-8
"""Relative difference up to which distances are equal. It lies above the error of
``squared_distances`` and below the resolution of float32 features, so that a rule and not rounding
decides which of two identical images counts as nearer."""

# Temporaries of squared_distances: the result, its scale and their comparison.
_BYTES_PER_PAIR = 40


def rows_by_class(features: Features) -> dict[int, Tensor]:
    """Return label -> positions (int64) of its rows in the order of their ids; labels ascend."""
    labels = features.labels.tolist()
    rows: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for position in sorted(range(len(labels)), key=features.ids.__getitem__):
        rows[labels[position]].append(position)
    return {label: torch.tensor(positions) for label, positions in rows.items()}


def take(features: Features, rows: Tensor) -> tuple[Tensor, ...]:
    """Return the blocks of the rows at positions ``rows``, without their labels and ids."""
    return tuple(block[rows.to(block.device)] for block in features.blocks)


def bounded(features: Features, rows: Tensor, others: int, memory: int) -> Iterator[Tensor]:
    """Yield ``rows`` in consecutive parts whose distances to ``others`` rows fit in ``memory`` bytes.

    Counts the copied features too; a part has at least one row, whatever ``memory`` is.

    Raises:
        ConfigError: ``memory`` is not positive.
    """
    if memory <= 0:
        raise ConfigError(f"memory: expected a positive number of bytes, found {memory}")
    copied = sum(block.shape[1] * block.element_size() for block in features.blocks)
    yield from torch.split(rows, max(1, memory // (others * _BYTES_PER_PAIR + copied)))
