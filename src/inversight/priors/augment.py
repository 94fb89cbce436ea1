"""Adaptive discriminator augmentation (Karras et al. 2020, "Training GANs with Limited Data").

Every image that the discriminator sees, real or generated, is augmented with probability p for each
kind, differentiably; p follows how much the discriminator overfits. Kinds (their "bgc"): mirror,
quarter turns, whole-pixel shifts, scaling, rotation, stretching, fractional shifts; brightness,
contrast, inverted luma, and for colour images hue and saturation. All geometry is one resampling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.priors.warping import warp


def augment(
    images: Tensor,
    p: float,
    rng: torch.Generator,
    *,
    mirror: bool = True,
    filtered: bool = False,
) -> Tensor:
    """Augment images (N, C, S, S) in [-1, 1], each kind with probability ``p`` for each image.

    Without ``mirror`` there is no mirroring and no quarter turn, for images like digits. ``filtered`` is
    the published resampling: it does not alias, can be differentiated twice and inverts grey images too.
    Otherwise images are sampled bilinearly, which is faster but blurs, and grey images are not inverted.
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
    """Adapts p so that the mean sign of D on real images stays at ``target`` (their r_t, eq. 1)."""

    def __init__(self, *, target: float, images: float, p: float = 0.0) -> None:
        self.target = target
        self.images = images
        self.p = p
        self.signs = 0.0
        self.seen = 0

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
    return (torch.rand(n, generator=rng) < p).float()


def _normal(n: int, rng: torch.Generator) -> Tensor:
    return torch.randn(n, generator=rng)


def _matrix(n: int, entries: dict[tuple[int, int], Tensor | float]) -> Tensor:
    m = torch.eye(3).repeat(n, 1, 1)
    for (row, column), value in entries.items():
        m[:, row, column] = value
    return m


def _rotation(n: int, angle: Tensor) -> Tensor:
    return _matrix(
        n,
        {(0, 0): angle.cos(), (0, 1): -angle.sin(), (1, 0): angle.sin(), (1, 1): angle.cos()},
    )


def _geometry(n: int, size: int, p: float, rng: torch.Generator, mirror: bool) -> Tensor:
    """Draw output-to-input affine maps (N, 2, 3) in affine_grid's units (half an image)."""
    m = torch.eye(3).repeat(n, 1, 1)
    if mirror:
        flip = 1.0 - 2.0 * (torch.rand(n, generator=rng) < 0.5).float() * _chosen(n, p, rng)
        m = m @ _matrix(n, {(0, 0): flip})
        turns = torch.randint(4, (n,), generator=rng).float() * _chosen(n, p, rng)
        m = m @ _rotation(n, turns * (math.pi / 2))
    whole = (torch.rand(n, 2, generator=rng) * 2 - 1) * 0.125 * _chosen(n, p, rng)[:, None]
    whole = (whole * size).round() * (2.0 / size)
    m = m @ _matrix(n, {(0, 2): whole[:, 0], (1, 2): whole[:, 1]})
    scale = torch.exp2(_normal(n, rng) * 0.2 * _chosen(n, p, rng))
    m = m @ _matrix(n, {(0, 0): scale, (1, 1): scale})
    # Two rotations, before and after stretching, each with the probability that makes p together.
    p_turn = 1.0 - math.sqrt(1.0 - p)
    m = m @ _rotation(n, (torch.rand(n, generator=rng) * 2 - 1) * math.pi * _chosen(n, p_turn, rng))
    stretch = torch.exp2(_normal(n, rng) * 0.2 * _chosen(n, p, rng))
    m = m @ _matrix(n, {(0, 0): stretch, (1, 1): 1.0 / stretch})
    m = m @ _rotation(n, (torch.rand(n, generator=rng) * 2 - 1) * math.pi * _chosen(n, p_turn, rng))
    shift = torch.randn(n, 2, generator=rng) * 0.125 * 2.0 * _chosen(n, p, rng)[:, None]
    m = m @ _matrix(n, {(0, 2): shift[:, 0], (1, 2): shift[:, 1]})
    return m[:, :2]


def _colour(images: Tensor, p: float, rng: torch.Generator, *, invert_grey: bool) -> Tensor:
    n, channels = images.shape[:2]
    brightness = (_normal(n, rng) * 0.2 * _chosen(n, p, rng)).to(images)
    contrast = torch.exp2(_normal(n, rng) * 0.5 * _chosen(n, p, rng)).to(images)
    images = (images + brightness[:, None, None, None]) * contrast[:, None, None, None]
    if channels == 1 and not invert_grey:
        return images
    axis = torch.full((3, 3), 1.0 / 3.0)
    inverted = (torch.rand(n, generator=rng) < 0.5).float() * _chosen(n, p, rng)
    if channels == 1:
        return images * (1.0 - 2.0 * inverted.to(images))[:, None, None, None]
    m = torch.eye(3) - 2.0 * axis * inverted[:, None, None]
    angle = (torch.rand(n, generator=rng) * 2 - 1) * math.pi * _chosen(n, p, rng)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3.0)
    c, s = angle.cos()[:, None, None], angle.sin()[:, None, None]
    m = (c * torch.eye(3) + s * cross + (1.0 - c) * axis) @ m  # rotation about grey (Rodrigues)
    saturation = torch.exp2(_normal(n, rng) * _chosen(n, p, rng))[:, None, None]
    m = (axis + (torch.eye(3) - axis) * saturation) @ m
    return torch.einsum("nij,njhw->nihw", m.to(images), images)
