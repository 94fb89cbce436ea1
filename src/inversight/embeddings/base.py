"""What an embedding is, what it returns, and the distance it defines.

An embedding phi maps images to feature blocks; its distance is
``d(x, y) = sum over blocks of ||phi_b(x) - phi_b(y)||^2``. LPIPS, pixels, a classifier's features
and Inception features are all of this form (METHOD: "LPIPS is a squared Euclidean distance").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

# Numbers held at once in each float64 temporary of squared_distances: 32 MiB.
_SCRATCH = 1 << 22


@runtime_checkable
class Embedding(Protocol):
    """Images (N, C, H, W) in [0, 1], C of 1 or 3, any size -> tuple of blocks, each (N, D_b).

    Differentiable with respect to the images. Resizing and channel conversion are the embedding's
    own business, so any two image sets can be compared. Each row depends on its own image alone.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]: ...


@runtime_checkable
class StagedEmbedding(Embedding, Protocol):
    """An embedding whose blocks can be had one after the other, for bounded memory.

    ``enter`` makes the input of stage 0; ``advance`` goes through a stage, giving the next stage's
    input (None after the last) and maps. ``refer`` writes one image's maps to ``reference`` (D,);
    ``write`` writes the maps' block less the reference's to ``out`` (N, D), which leaves distances
    as they are. The order of values within a block is the embedding's own business, as long as it is
    always the same.
    """

    def batch_size(self, device: torch.device) -> int: ...

    def enter(self, images: Tensor) -> Tensor: ...

    def advance(self, stage: int, state: Tensor) -> tuple[Tensor | None, Tensor]: ...

    def refer(self, stage: int, maps: Tensor, reference: Tensor) -> None: ...

    def write(self, stage: int, maps: Tensor, reference: Tensor, out: Tensor) -> None: ...


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
    """All pairs' squared distances, (N, M) float64 >= 0, of blocks (N, D_b) and (M, D_b).

    One matrix product a block, in float64 and a bounded number of columns at a time, on rows
    centred on the mean of ``right``. ``|a|^2 + |b|^2 - 2ab`` cancels exactly where near-duplicates
    matter, so pairs that are close beside their norms are computed again by differences. Every
    entry is right to about 1e-9 of itself, and equal rows are at exactly 0, whatever else is in
    the call. Beside the result it needs about 0.2 GB.

    Raises:
        ValueError: no block, or blocks that do not match in number or width.
    """
    if not left or len(left) != len(right):
        raise ValueError(f"expected equally many blocks, at least one: {len(left)}, {len(right)}")
    total = left[0].new_zeros((len(left[0]), len(right[0])), dtype=torch.float64)
    norms_left, norms_right = total.new_zeros(len(total), 1), total.new_zeros(1, total.shape[1])
    width = max(1, _SCRATCH // max(1, sum(total.shape)))
    for a, b in zip(left, right, strict=True):
        if a.shape[1] != b.shape[1]:
            raise ValueError(f"expected blocks of one width, found {a.shape[1]} and {b.shape[1]}")
        for a_part, b_part in zip(torch.split(a, width, 1), torch.split(b, width, 1), strict=True):
            b0 = b_part.double()
            centre = b0.mean(dim=0, keepdim=True)
            a0, b0 = a_part.double() - centre, b0 - centre
            norms_left += a0.square().sum(1)[:, None]
            norms_right += b0.square().sum(1)[None, :]
            total.addmm_(a0, b0.T, alpha=-2.0)
    scale = norms_left + norms_right
    total += scale
    # The product's error is some 1e-14 of scale: above this share it is 1e-10 of the distance.
    close = (total < 1e-4 * scale).nonzero()
    at_once = max(1, _SCRATCH // max(1, *(a.shape[1] for a in left)))
    for pairs in torch.split(close, at_once):
        i, j = pairs.unbind(1)
        total[i, j] = sum(
            (
                (a[i].double() - b[j].double()).square().sum(1)
                for a, b in zip(left, right, strict=True)
            ),
            start=total.new_zeros(len(pairs)),
        )
    return total.clamp_min_(0.0)
