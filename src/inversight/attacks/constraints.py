"""Coordinates of latent space in which attacks search, and the regions to which they restrict latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Coordinates:
    """Latents in standard deviations of a sample from its mean, coordinate by coordinate.

    GMI, KED-MI and VMI were written for GANs with normal latents. In these coordinates the latents of
    any prior are about normal, so the papers' steps, bounds and divergences keep their meaning.

    mean, deviation: of the sample's coordinates, (D,). shape: of one latent.
    """

    mean: Tensor
    deviation: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, latents: Tensor) -> Coordinates:
        """Return coordinates in which the sample ``latents`` (P, ...) has mean 0 and deviation 1."""
        flat = latents.flatten(1)
        deviation = flat.std(0, correction=0)
        # A constant coordinate is not scaled.
        deviation = torch.where(deviation > 0, deviation, 1.0)
        return cls(flat.mean(0), deviation, tuple(latents.shape[1:]))

    @property
    def width(self) -> int:
        return len(self.mean)

    def points(self, latents: Tensor) -> Tensor:
        """Return the points (N, D) of latents (N, ...)."""
        return (latents.flatten(1) - self.mean) / self.deviation

    def latents(self, points: Tensor) -> Tensor:
        """Return the latents (N, ...) of points (N, D), differentiable."""
        return (self.mean + points * self.deviation).view(-1, *self.shape)


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


@dataclass(frozen=True)
class PSpace:
    """P: W before its leaky rectifier, where coordinates are nearly normal (Zhu et al. 2020).

    slope: the rectifier's negative slope (StyleGAN: 0.2; 1 for latents that are not W). bound: standard
    deviations from the mean beyond which coordinates are clipped. mean, deviation: of a sample's
    coordinates in P, without the samples' axis.
    """

    slope: float
    bound: float
    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, latents: Tensor, *, slope: float, bound: float) -> PSpace:
        p = F.leaky_relu(latents, 1.0 / slope)
        return cls(slope, bound, p.mean(0), p.std(0, correction=0))

    def moved(self, latents: Tensor, by: Tensor) -> Tensor:
        """Return latents moved ``by`` standard deviations in P and clipped there."""
        p = F.leaky_relu(latents, 1.0 / self.slope) + by * self.deviation
        reach = self.bound * self.deviation
        return F.leaky_relu(p.clamp(self.mean - reach, self.mean + reach), self.slope)

    def clipped(self, latents: Tensor) -> Tensor:
        """Return latents (N, ...) clipped in P."""
        return self.moved(latents, torch.zeros_like(self.mean))


def project_to_l1_ball(points: Tensor, centres: Tensor, radius: float) -> Tensor:
    """Project ``points`` (N, ...) to the L1 balls of ``radius`` around ``centres``.

    By sorting (Duchi et al. 2008, fig. 1). A point inside its ball is returned unchanged, bit by bit.
    """
    offset = (points - centres).flatten(1)
    size = offset.abs()
    ordered = size.sort(dim=1, descending=True).values
    rank = torch.arange(1, offset.shape[1] + 1, device=offset.device)
    excess = (ordered.cumsum(1) - radius) / rank
    last = (ordered > excess).sum(1, keepdim=True).clamp_min(1) - 1
    shrunk = offset.sign() * (size - excess.gather(1, last)).clamp_min(0.0)
    inside = (size.sum(1) <= radius).view(-1, *[1] * (points.dim() - 1))
    return torch.where(inside, points, centres + shrunk.view_as(points))
