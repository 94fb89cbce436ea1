"""The space of searches without gradients: latents in standard deviations of a pool."""

from __future__ import annotations

import torch
from torch import Tensor

from inversight.attacks.constraints import Coordinates


class PoolSpace:
    """Coordinates in which a pool of latents has mean 0 and deviation 1, and the pool's range in them.

    points: (P, D) float64, the pool's, on the CPU: searches run there, and some accelerators have no
    float64. Coordinates that are constant in the pool stay constant.
    """

    def __init__(self, pool: Tensor) -> None:
        """pool: latents (P, ...) that define the coordinates."""
        self._kind = pool[:0]
        wide = pool.cpu().double()
        self._coordinates = Coordinates.of(wide)
        self.points = self._coordinates.points(wide)
        self._low, self._high = self.points.aminmax(dim=0)

    @property
    def width(self) -> int:
        """The number of coordinates, D."""
        return self._coordinates.width

    def points_of(self, latents: Tensor) -> Tensor:
        """Return latents (n, ...) in these coordinates, (n, D) float64 on the CPU."""
        return self._coordinates.points(latents.cpu().double())

    def clipped(self, points: Tensor) -> Tensor:
        """Clip points (..., D) to the range of each coordinate in the pool."""
        return points.clamp(self._low, self._high)

    def latents(self, points: Tensor, *, clip: bool = True) -> Tensor:
        """Return points (..., D) as latents like the pool's, one row each, by default clipped."""
        x = points.reshape(-1, self.width).double()
        x = self.clipped(x) if clip else torch.where(self._low == self._high, 0.0, x)
        return self._coordinates.latents(x).to(self._kind)
