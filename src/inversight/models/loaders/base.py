"""What every loader returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inversight.core.imaging import Resizing
from inversight.models.target import Access

CONVERT = (
    "convert it once where you trust it: "
    "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)
"""What to do with a pickle."""


@dataclass(frozen=True)
class LoadedModel:
    """A model as its file gave it.

    size: height and width of its input. channels: 1 or 3, None: to be found by calling it. mean, std:
    normalisation of images in [0, 1]. classes: names of its outputs, () if the file names none. resizing:
    how images come to its input, None: bilinearly as a whole. access: the most that it can give. notes:
    what the user should know, a sentence each.
    """

    module: nn.Module
    size: tuple[int, int]
    channels: int | None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    classes: tuple[str, ...] = ()
    resizing: Resizing | None = None
    access: Access = Access.WHITE_BOX
    notes: tuple[str, ...] = ()


def in_batches(call: Callable[[Tensor], Tensor], x: Tensor, batch: int | None) -> Tensor:
    """Return ``call`` of x (N, ...) in parts of ``batch`` rows, the last one filled up; None: at once."""
    if batch is None:
        return call(x)
    parts = []
    for part in x.split(batch):
        missing = batch - len(part)
        whole = torch.cat([part, part[-1:].expand(missing, *x.shape[1:])]) if missing else part
        parts.append(call(whole)[: len(part)])
    return torch.cat(parts)
