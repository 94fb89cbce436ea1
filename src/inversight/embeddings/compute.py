"""Embeds labelled image sets, batch by batch."""

from __future__ import annotations

import torch

from inversight.core.errors import StageError
from inversight.core.progress import Progress, silent
from inversight.data import ImageSet
from inversight.embeddings.base import Embedding, Features


@torch.no_grad()
def embed(
    embedding: Embedding,
    images: ImageSet,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Features:
    """Features of every image, in row order, float32 on the CPU.

    Raises:
        StageError: the embedding gave a NaN or an infinity, naming the image.
    """
    rows: list[tuple[torch.Tensor, ...]] = []
    for index in torch.arange(len(images)).split(batch_size):
        blocks = embedding(images.select(index).floats().to(device))
        blocks = tuple(b.flatten(1).float().cpu() for b in blocks)
        finite = torch.stack([b.isfinite().all(1) for b in blocks]).all(0)
        if not bool(finite.all()):
            first = images.ids[int(index[int((~finite).nonzero()[0])])]
            raise StageError(f"embedding {embedding.name}: not a finite number for image {first}")
        rows.append(blocks)
        progress(int(index[-1]) + 1, len(images), embedding.name)
    return Features(
        blocks=tuple(torch.cat(column) for column in zip(*rows, strict=True)),
        labels=images.labels,
        ids=images.ids,
    )
