"""The coordinates in which searches without gradients move: deviations of a pool of latents.

A prior's latents may be of any scale; in these coordinates a step means the same with every prior.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Coordinates:
    """Latents as standard deviations from the mean of a pool, each coordinate by itself.

    points (P, D) float64: the pool's own, on the CPU, where searches are; some accelerators know no
    float64. A coordinate that does not vary in the pool stays where it is.
    """

    def __init__(self, pool: Tensor) -> None:
        """``pool`` (P, ...): latents of which the coordinates are made."""
        self._kind = pool[:0]
        wide = pool.flatten(1).cpu().double()
        self._mean = wide.mean(0)
        deviation = wide.std(0, correction=0)
        self._fixed = deviation == 0
        self._deviation = torch.where(self._fixed, 1.0, deviation)
        self.points = self.points_of(pool)
        self._low, self._high = self.points.aminmax(dim=0)

    @property
    def width(self) -> int:
        """D, the number of coordinates."""
        return self.points.shape[1]

    def points_of(self, latents: Tensor) -> Tensor:
        """Latents (n, ...) in these coordinates, (n, D) float64 on the CPU."""
        return (latents.flatten(1).cpu().double() - self._mean) / self._deviation

    def clipped(self, points: Tensor) -> Tensor:
        """Points (..., D) brought into the range that each coordinate has in the pool."""
        return points.clamp(self._low, self._high)

    def latents(self, points: Tensor, *, clip: bool = True) -> Tensor:
        """Points (..., D) as latents of the pool's shape, one row each.

        clip: to the range that each coordinate has in the pool.
        """
        x = points.reshape(-1, self.width).double()
        x = self.clipped(x) if clip else torch.where(self._fixed, 0.0, x)
        found = (self._mean + x * self._deviation).to(self._kind)
        return found.view(-1, *self._kind.shape[1:])
