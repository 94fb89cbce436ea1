"""What the target makes of images, on the scale of what it makes of the public ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inversight.models.activations import record_convolutions
from inversight.models.target import Target

MOST_MAPS = 4
_MEASURED = 1024
"""Least number of public images that mean and variance are measured on, if there are as many."""


class StandardisedMaps:
    """Up to four of the target's maps, each channel with mean 0 and variance 1 over public images.

    They are evenly spaced in depth, without the first unless it is the only one; none of a target
    without two-dimensional convolutions. ``channels``: how many each has.
    """

    def __init__(self, target: Target, public: Tensor) -> None:
        """``public``: uint8 images (N, C, S, S)."""
        self.target = target
        measured = _moments(target, public[:: max(1, len(public) // _MEASURED)])
        last = len(measured) - 1
        depths = {round(last * i / MOST_MAPS) for i in range(1, MOST_MAPS + 1)}
        self.depths = sorted(depths) if measured else []
        self.moments = [measured[depth] for depth in self.depths]

    @property
    def channels(self) -> list[int]:
        return [int(mean.shape[1]) for mean, _ in self.moments]

    def of(self, images: Tensor) -> list[Tensor]:
        """Maps, each (N, c, h, w), of images (N, C, S, S) in [0, 1]; differentiable."""
        return self.among(_maps(self.target, images))

    def among(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The same out of all maps of the target's, as an observation has them."""
        chosen = [maps[depth] for depth in self.depths]
        return [
            (one - mean) * scale for one, (mean, scale) in zip(chosen, self.moments, strict=True)
        ]


@torch.no_grad()
def _moments(
    target: Target, public: Tensor, *, batch_size: int = 64
) -> list[tuple[Tensor, Tensor]]:
    """Mean and one over the standard deviation, (1, C, 1, 1), of each map over images and positions."""
    device = next((p.device for p in target.module.parameters()), torch.device("cpu"))
    sums: list[tuple[Tensor, Tensor]] = []
    for images in public.split(batch_size):
        maps = _maps(target, images.to(device).float() / 255.0)
        exact = [m.cpu().double() for m in maps]  # not every device has float64
        found = [(_total(m), _total(m.square())) for m in exact]
        before = sums or [(torch.zeros(()), torch.zeros(()))] * len(found)
        sums = [(a + c, b + d) for (a, b), (c, d) in zip(before, found, strict=True)]
    moments = []
    for first, second in sums:
        mean = first / len(public)
        scale = ((second / len(public) - mean.square()).clamp_min(0.0) + 1e-5).rsqrt()
        moments.append((_for_channels(mean, device), _for_channels(scale, device)))
    return moments


def _maps(target: Target, images: Tensor) -> list[Tensor]:
    """Return the outputs of all convolutions, in order of calls, for images (N, C, S, S) in [0, 1]."""
    with record_convolutions(target.module) as maps:
        target(images)
    return maps


def _total(maps: Tensor) -> Tensor:
    """Sum over images of the mean over positions, (C,)."""
    return maps.mean((2, 3)).sum(0)


def _for_channels(values: Tensor, device: torch.device) -> Tensor:
    return values.float().view(1, -1, 1, 1).to(device)
