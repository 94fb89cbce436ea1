"""Embeddings, the features they return, and the distance they define.

An embedding phi maps images to feature blocks; its distance is
``d(x, y) = sum over blocks of ||phi_b(x) - phi_b(y)||^2``. LPIPS, pixels, a classifier's features
and Inception features are all of this form.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from inversight.core.errors import StageError
from inversight.core.progress import Progress, silent
from inversight.data import ImageSet


@runtime_checkable
class Embedding(Protocol):
    """Images (N, C, H, W) in [0, 1], C of 1 or 3, any size -> tuple of blocks, each (N, D_b).

    Differentiable with respect to the images. The embedding resizes images and converts their
    channels itself, so any two image sets can be compared. Each row depends on its own image alone.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]: ...


@runtime_checkable
class StagedEmbedding(Embedding, Protocol):
    """An embedding that computes its blocks one after the other, for bounded memory.

    ``enter`` makes the input of stage 0; ``advance`` goes through a stage and returns the next stage's
    input (None after the last) and maps. ``refer`` writes one image's maps to ``reference`` (D,);
    ``write`` writes the maps' block less the reference's to ``out`` (N, D), which does not change
    distances. The order of values within a block is free but must always be the same.
    """

    def batch_size(self, device: torch.device) -> int: ...

    def enter(self, images: Tensor) -> Tensor: ...

    def advance(self, stage: int, state: Tensor) -> tuple[Tensor | None, Tensor]: ...

    def refer(self, stage: int, maps: Tensor, reference: Tensor) -> None: ...

    def write(self, stage: int, maps: Tensor, reference: Tensor, out: Tensor) -> None: ...


@dataclass(frozen=True)
class Features:
    """Embedded, labelled images: the input of every score.

    blocks: each (N, D_b) float32. labels: (N,) int64. ids: N distinct names, ``/``-separated.
    """

    blocks: tuple[Tensor, ...]
    labels: Tensor
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, index: Tensor) -> Features:
        """Return the rows at the int64 positions ``index``, in that order."""
        return replace(
            self,
            blocks=tuple(block[index] for block in self.blocks),
            labels=self.labels[index],
            ids=tuple(self.ids[int(i)] for i in index),
        )

    def flat(self) -> Tensor:
        """Return all blocks side by side, (N, sum of D_b)."""
        return torch.cat([block.flatten(1) for block in self.blocks], dim=1)


@dataclass(frozen=True)
class Identity:
    """An embedding of features (N, ...) in the place of images: returns them as they are."""

    name: str = "given"

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return (images.flatten(1),)


class Remembering:
    """An embedding without stages that computes an image's features once. It takes no derivatives.

    Features are kept by the image's content until ``full`` is set.
    """

    def __init__(self, embedding: Embedding) -> None:
        self.embedding, self.full = embedding, False
        self._known: dict[bytes, Tensor] = {}

    @property
    def name(self) -> str:
        return self.embedding.name

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        keys = [hashlib.blake2b(x.cpu().contiguous().numpy().tobytes()).digest() for x in images]
        first = {key: row for row, key in reversed([*enumerate(keys)]) if key not in self._known}
        found: dict[bytes, Tensor] = {}
        if first:
            blocks = self.embedding(images[sorted(first.values())])
            made = torch.cat([block.flatten(1).float() for block in blocks], dim=1)
            found = dict(zip(sorted(first, key=first.__getitem__), made, strict=True))
        if not self.full:
            self._known |= found
        return (torch.stack([found[k] if k in found else self._known[k] for k in keys]),)


@torch.no_grad()
def embed(
    embedding: Embedding, images: ImageSet, *, batch_size: int = 64,
    device: torch.device | str = "cpu", progress: Progress = silent,
) -> Features:  # fmt: skip
    """Return the features of every image, in row order, float32 on the CPU.

    Raises:
        StageError: the embedding returned a NaN or an infinity; names the image.
    """
    rows: list[tuple[Tensor, ...]] = []
    for index in torch.arange(len(images)).split(batch_size):
        blocks = embedding(images.select(index).floats().to(device))
        blocks = tuple(b.flatten(1).float().cpu() for b in blocks)
        finite = torch.stack([b.isfinite().all(1) for b in blocks]).all(0)
        if not bool(finite.all()):
            first = images.ids[int(index[int((~finite).nonzero()[0])])]
            raise StageError(f"embedding {embedding.name}: not a finite number for image {first}")
        rows.append(blocks)
        progress(int(index[-1]) + 1, len(images), embedding.name)
    blocks = tuple(torch.cat(column) for column in zip(*rows, strict=True))
    return Features(blocks, images.labels, images.ids)
