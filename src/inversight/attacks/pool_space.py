"""Where searches without gradients move: a pool of latents, in its own standard deviations."""

from __future__ import annotations

import torch
from torch import Tensor

from inversight.attacks.constraints import Coordinates


class PoolSpace:
    """Coordinates of a pool of latents, and the range that it has in them.

    points (P, D) float64: the pool's own, on the CPU, where searches are; some accelerators know no
    float64. A coordinate that does not vary in the pool stays where it is.
    """

    def __init__(self, pool: Tensor) -> None:
        """``pool`` (P, ...): latents of which the coordinates are made."""
        self._kind = pool[:0]
        wide = pool.cpu().double()
        self._coordinates = Coordinates.of(wide)
        self.points = self._coordinates.points(wide)
        self._low, self._high = self.points.aminmax(dim=0)

    @property
    def width(self) -> int:
        """D, the number of coordinates."""
        return self._coordinates.width

    def points_of(self, latents: Tensor) -> Tensor:
        """Latents (n, ...) in these coordinates, (n, D) float64 on the CPU."""
        return self._coordinates.points(latents.cpu().double())

    def clipped(self, points: Tensor) -> Tensor:
        """Points (..., D) brought into the range that each coordinate has in the pool."""
        return points.clamp(self._low, self._high)

    def latents(self, points: Tensor, *, clip: bool = True) -> Tensor:
        """Points (..., D) as latents like the pool's, one row each.

        clip: to the range that each coordinate has in the pool.
        """
        x = points.reshape(-1, self.width).double()
        x = self.clipped(x) if clip else torch.where(self._low == self._high, 0.0, x)
        return self._coordinates.latents(x).to(self._kind)
