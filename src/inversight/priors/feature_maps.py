"""Feature maps of the target, standardised by their moments over public images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inversight.models.activations import record_convolutions
from inversight.models.target import Target

_MAX_MAPS = 4
_MEASURED = 1024
"""Smallest number of public images that the moments are computed on, if there are as many."""


class StandardisedMaps:
    """Outputs of up to four of the target's convolutions, with mean 0 and variance 1 in each channel.

    The convolutions are evenly spaced in depth, without the first unless it is the only one. Mean and
    variance are over public images and positions. A target without two-dimensional convolutions has no
    maps.
    """

    def __init__(self, target: Target, public: Tensor) -> None:
        """``public``: uint8 images (N, C, S, S)."""
        self.target = target
        measured = _moments(target, public[:: max(1, len(public) // _MEASURED)])
        last = len(measured) - 1
        depths = {round(last * i / _MAX_MAPS) for i in range(1, _MAX_MAPS + 1)}
        self.depths = sorted(depths) if measured else []
        self.moments = [measured[depth] for depth in self.depths]

    def of(self, images: Tensor) -> list[Tensor]:
        """Return the maps, each (N, c, h, w), of images (N, C, S, S) in [0, 1]; differentiable."""
        return self.among(_maps(self.target, images))

    def among(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the same, given the outputs of all convolutions of the target."""
        chosen = [maps[depth] for depth in self.depths]
        return [
            (one - mean) * scale for one, (mean, scale) in zip(chosen, self.moments, strict=True)
        ]


@torch.no_grad()
def _moments(
    target: Target, public: Tensor, *, batch_size: int = 64
) -> list[tuple[Tensor, Tensor]]:
    """Return mean and reciprocal standard deviation, both (1, C, 1, 1), of each convolution's output."""
    device = target.device
    sums: list[Tensor] = []
    for images in public.split(batch_size):
        maps = _maps(target, images.to(device).float() / 255.0)
        exact = [m.cpu().double() for m in maps]  # not every device has float64
        found = [torch.stack([x.mean((2, 3)).sum(0) for x in (m, m.square())]) for m in exact]
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
    moments = []
    for mean, square in (total / len(public) for total in sums):
        scale = ((square - mean.square()).clamp_min(0.0) + 1e-5).rsqrt()
        mean, scale = (values.float().view(1, -1, 1, 1).to(device) for values in (mean, scale))
        moments.append((mean, scale))
    return moments


def _maps(target: Target, images: Tensor) -> list[Tensor]:
    """Return the outputs of all convolutions, in order of calls, for images (N, C, S, S) in [0, 1]."""
    with record_convolutions(target.module) as maps:
        target(images)
    return maps
