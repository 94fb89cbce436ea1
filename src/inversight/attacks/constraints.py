"""Where a search may go: regions of latent space that attacks keep their latents in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Coordinates:
    """Latents in standard deviations of a sample from its mean, coordinate by coordinate.

    The latents of the GANs for which GMI, KED-MI and VMI were written are normal. Measured so, those
    of any prior are about that, and the papers' steps, bounds and divergences keep their meaning.

    mean, deviation: of the sample's coordinates, (D,). shape: of one latent.
    """

    mean: Tensor
    deviation: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, latents: Tensor) -> Coordinates:
        """Coordinates in which the sample ``latents`` (P, ...) has mean 0 and deviation 1."""
        flat = latents.flatten(1)
        deviation = flat.std(0, correction=0)
        # A coordinate that does not vary is left as it is.
        deviation = torch.where(deviation > 0, deviation, 1.0)
        return cls(flat.mean(0), deviation, tuple(latents.shape[1:]))

    @property
    def width(self) -> int:
        return len(self.mean)

    def points(self, latents: Tensor) -> Tensor:
        """Points (N, D) of latents (N, ...)."""
        return (latents.flatten(1) - self.mean) / self.deviation

    def latents(self, points: Tensor) -> Tensor:
        """Latents (N, ...) of points (N, D), differentiable."""
        return (self.mean + points * self.deviation).view(-1, *self.shape)


@dataclass(frozen=True)
class PSpace:
    """P, where W's coordinates are nearly normal (Zhu et al. 2020): W before its leaky rectifier.

    slope: the rectifier's negative one (StyleGAN: 0.2; 1 for latents that are no W). bound: standard
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
        """Latents moved ``by`` standard deviations in P, and clipped there."""
        p = F.leaky_relu(latents, 1.0 / self.slope) + by * self.deviation
        reach = self.bound * self.deviation
        return F.leaky_relu(p.clamp(self.mean - reach, self.mean + reach), self.slope)

    def clipped(self, latents: Tensor) -> Tensor:
        """Latents (N, ...) clipped in P."""
        return self.moved(latents, torch.zeros_like(self.mean))


def within_l1_ball(points: Tensor, centres: Tensor, radius: float) -> Tensor:
    """The nearest of ``points`` (N, ...) whose L1 distance to their ``centres`` is at most ``radius``.

    By sorting (Duchi et al. 2008, fig. 1); a point that is inside stays as it is, bit by bit.
    """
    away = (points - centres).flatten(1)
    size = away.abs()
    ordered = size.sort(dim=1, descending=True).values
    rank = torch.arange(1, away.shape[1] + 1, device=away.device)
    excess = (ordered.cumsum(1) - radius) / rank
    last = (ordered > excess).sum(1, keepdim=True).clamp_min(1) - 1
    shrunk = away.sign() * (size - excess.gather(1, last)).clamp_min(0.0)
    inside = (size.sum(1) <= radius).view(-1, *[1] * (points.dim() - 1))
    return torch.where(inside, points, centres + shrunk.view_as(points))
