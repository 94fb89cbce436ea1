"""Random splits of an image set."""

from __future__ import annotations

import torch

from inversight.data.images import ImageSet


def split(images: ImageSet, fraction: float, *, rng: torch.Generator) -> tuple[ImageSet, ImageSet]:
    """Return (rest, held out): about ``fraction`` of each class, never a class's last image."""
    held: list[int] = []
    for label in images.labels.unique().tolist():
        rows = (images.labels == label).nonzero().squeeze(1)
        count = min(len(rows) - 1, max(1, round(fraction * len(rows)))) if fraction > 0 else 0
        held += rows[torch.randperm(len(rows), generator=rng)][:count].tolist()
    mask = torch.zeros(len(images), dtype=torch.bool)
    mask[torch.tensor(held, dtype=torch.int64)] = True
    return images.select((~mask).nonzero().squeeze(1)), images.select(mask.nonzero().squeeze(1))
