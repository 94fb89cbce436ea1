"""What an embedding is, what it returns, and the distance it defines.

An embedding phi maps images to feature blocks; its distance is
``d(x, y) = sum over blocks of ||phi_b(x) - phi_b(y)||^2``. LPIPS, pixels, a classifier's features and
Inception features are all of this form (METHOD: "LPIPS is a squared Euclidean distance").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Embedding(Protocol):
    """Images (N, C, H, W) in [0, 1], C of 1 or 3, any size -> tuple of blocks, each (N, D_b).

    Differentiable with respect to the images. Resizing and channel conversion are the embedding's
    own business, so any two image sets can be compared. Each row depends on its own image alone.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True)
class Features:
    """Embedded, labelled images: what every score reads.

    blocks: each (N, D_b) float32. labels: (N,) int64. ids: N distinct names, ``/``-separated.
    """

    blocks: tuple[Tensor, ...]
    labels: Tensor
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, index: Tensor) -> Features:
        """The rows in ``index`` (int64 positions), in that order."""
        return replace(
            self,
            blocks=tuple(block[index] for block in self.blocks),
            labels=self.labels[index],
            ids=tuple(self.ids[int(i)] for i in index),
        )

    def flat(self) -> Tensor:
        """All blocks side by side, (N, sum of D_b)."""
        return torch.cat([block.flatten(1) for block in self.blocks], dim=1)


def squared_distances(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """All pairs' squared distances, (N, M), of two tuples of blocks (N, D_b) and (M, D_b).

    One matrix product a block. Rows are centred on the mean of ``right`` first, and pairs whose
    distance is small beside their norms are computed again by differences, since
    ``|a|^2 + |b|^2 - 2ab`` cancels exactly where near-duplicates matter.
    """
    total: Tensor | None = None
    scale: Tensor | None = None
    for a, b in zip(left, right, strict=True):
        centre = b.mean(dim=0, keepdim=True)
        a0, b0 = a - centre, b - centre
        norms = a0.square().sum(1)[:, None] + b0.square().sum(1)[None, :]
        part = norms - 2.0 * (a0 @ b0.T)
        total = part if total is None else total + part
        scale = norms if scale is None else scale + norms
    if total is None or scale is None:
        raise ValueError("squared_distances needs at least one feature block")
    close = (total < 1e-3 * scale).nonzero()
    for chunk in close.split(256):
        i, j = chunk[:, 0], chunk[:, 1]
        exact = sum(
            ((a[i] - b[j]).square().sum(1) for a, b in zip(left, right, strict=True)),
            start=torch.zeros(len(chunk), device=total.device, dtype=total.dtype),
        )
        total[i, j] = exact
    return total.clamp_min(0.0)
