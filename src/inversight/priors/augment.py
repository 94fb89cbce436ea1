"""Adaptive discriminator augmentation (Karras et al. 2020, "Training GANs with Limited Data").

Every image that the discriminator sees, real or generated, goes through differentiable augmentations,
each applied with probability p. p is adapted to how much the discriminator overfits. The augmentations
(their "bgc"): mirroring, quarter turns, whole-pixel shifts, scaling, rotation, stretching, fractional
shifts; brightness, contrast, inverted luma, and for colour images hue and saturation. All geometric
ones are applied in one resampling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.priors.warping import warp


def augment(
    images: Tensor, p: float, rng: torch.Generator, *, mirror: bool = True, filtered: bool = False
) -> Tensor:
    """Augment images (N, C, S, S) in [-1, 1], each kind with probability ``p`` for each image.

    ``mirror=False`` leaves out mirroring and quarter turns, for images like digits. ``filtered`` selects
    the published resampling, which does not alias and has second derivatives, and inverts grey images
    too. Otherwise images are sampled bilinearly, which is faster but blurs, and grey images are not
    inverted.
    """
    if p <= 0.0:
        return images
    theta = _geometry(len(images), images.shape[-1], p, rng, mirror)
    if filtered:
        moved = warp(images, theta)
    else:
        grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return _colour(moved, p, rng, invert_grey=filtered)


class OverfittingControl:
    """Adapts p to keep the mean sign of D on real images at ``target`` (their r_t, eq. 1)."""

    def __init__(self, *, target: float, images: float, p: float = 0.0) -> None:
        self.target, self.images, self.p = target, images, p
        self.signs, self.seen = 0.0, 0

    def see(self, signs: float, images: int) -> None:
        """Add the sum of the signs of D's logits on a number of real images."""
        self.signs += signs
        self.seen += images

    def update(self) -> None:
        """Update p in proportion to the images seen since the last update."""
        if self.seen:
            overfits = self.signs / self.seen - self.target
            self.p = min(1.0, max(0.0, self.p + math.copysign(self.seen / self.images, overfits)))
        self.signs, self.seen = 0.0, 0


def _chosen(n: int, p: float, rng: torch.Generator) -> Tensor:
    """Return 1 with probability ``p``, else 0, for each of n images."""
    return (torch.rand(n, generator=rng) < p).float()


def _factor(n: int, octaves: float, p: float, rng: torch.Generator) -> Tensor:
    """Return a log-normal factor with this deviation with probability ``p``, else 1, for each image."""
    return torch.exp2(torch.randn(n, generator=rng) * octaves * _chosen(n, p, rng))


def _angle(n: int, p: float, rng: torch.Generator) -> Tensor:
    """Return an angle uniform in [-pi, pi) with probability ``p``, else 0, for each image."""
    return (torch.rand(n, generator=rng) * 2 - 1) * math.pi * _chosen(n, p, rng)


def _rotation(angle: Tensor) -> Tensor:
    """Return the matrices (n, 2, 2) of rotations by ``angle`` (n,)."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([c, -s, s, c], dim=1).view(-1, 2, 2)


def _geometry(n: int, size: int, p: float, rng: torch.Generator, mirror: bool) -> Tensor:
    """Draw output-to-input affine maps (N, 2, 3) in affine_grid's units (half an image).

    Each is the product of mirroring, a quarter turn, a shift by whole pixels, scaling, rotation, stretching,
    rotation and a shift, in this order from the left.
    """
    if mirror:
        mirrored = torch.ones(n, 2, 1)
        mirrored[:, 0, 0] = 1.0 - 2.0 * _chosen(n, 0.5, rng) * _chosen(n, p, rng)
        quarters = torch.randint(4, (n,), generator=rng).float() * _chosen(n, p, rng)
    whole = (torch.rand(n, 2, generator=rng) * 2 - 1) * 0.125 * _chosen(n, p, rng)[:, None]
    scale = _factor(n, 0.2, p, rng)
    # Rotations before and after stretching; at least one is applied with probability p.
    p_turn = 1.0 - math.sqrt(1.0 - p)
    before = _rotation(_angle(n, p_turn, rng))
    stretch = _factor(n, 0.2, p, rng)
    after = _rotation(_angle(n, p_turn, rng))
    shift = torch.randn(n, 2, generator=rng) * (0.125 * 2.0) * _chosen(n, p, rng)[:, None]
    factors = torch.stack([scale * stretch, scale / stretch], dim=1)
    linear = before @ (factors[:, :, None] * after)
    moved = linear @ shift[:, :, None] + ((whole * size).round() * (2.0 / size))[:, :, None]
    m = torch.cat([linear, moved], dim=2)
    return mirrored * (_rotation(quarters * (math.pi / 2)) @ m) if mirror else m


def _colour(images: Tensor, p: float, rng: torch.Generator, *, invert_grey: bool) -> Tensor:
    n, channels = images.shape[:2]
    brightness = (torch.randn(n, generator=rng) * 0.2 * _chosen(n, p, rng)).to(images)
    contrast = _factor(n, 0.5, p, rng).to(images)
    images = (images + brightness[:, None, None, None]) * contrast[:, None, None, None]
    if channels == 1 and not invert_grey:
        return images
    axis = torch.full((3, 3), 1.0 / 3.0)
    inverted = _chosen(n, 0.5, rng) * _chosen(n, p, rng)
    if channels == 1:
        return images * (1.0 - 2.0 * inverted.to(images))[:, None, None, None]
    m = torch.eye(3) - 2.0 * axis * inverted[:, None, None]
    angle = _angle(n, p, rng)[:, None, None]
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3.0)
    c, s = angle.cos(), angle.sin()
    m = (c * torch.eye(3) + s * cross + (1.0 - c) * axis) @ m  # rotation about grey (Rodrigues)
    m = (axis + (torch.eye(3) - axis) * _factor(n, 1.0, p, rng)[:, None, None]) @ m  # saturation
    return torch.einsum("nij,njhw->nihw", m.to(images), images)
