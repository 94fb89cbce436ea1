"""Moves images by affine maps without aliasing, differentiable as often as asked.

Karras et al. 2020, "Training GANs with Limited Data", appendix B: images are reflected at their
borders, doubled with the low-pass filter of a wavelet, sampled bilinearly and halved with the same
filter. The wavelet is orthogonal, so where the map is the identity or a whole-pixel shift the images
come back as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.priors.resampling import double, make_filter, upfirdn

SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
"""Low-pass filter of the symlet with six vanishing moments (Daubechies 1992, section 8.1.1)."""

_REACH = len(SYM6) // 4
"""Pixels that half of the filter, which works at twice the size, spans."""


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Images (N, C, S, S), each seen through its own output-to-input map (N, 2, 3).

    Maps act on (x, y, 1) in units of half an image from the centre, as ``affine_grid``'s do.
    """
    size = images.shape[-1]
    centre = (size - 1) / 2
    maps = torch.cat([maps[:, :, :2], maps[:, :, 2:] * (size / 2)], dim=2)  # now in pixels
    left, right, top, bottom = _margins(maps, size)
    maps = maps.to(images)
    taps = make_filter(SYM6).to(images)
    doubled = double(F.pad(images, (left, right, top, bottom), mode="reflect"), taps)
    # Half-pixel steps over the output and what its filter spans beyond; each at its source.
    steps = torch.arange(2 * size + 4 * _REACH).to(images) / 2 - _REACH - centre
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=2)
    origin = torch.tensor([left + centre, top + centre]).to(images)
    source = torch.einsum("hwj,nij->nhwi", points, maps) + origin
    # Pixel i is sample 2 i of the doubled images; grid_sample wants -1 and 1 at the outer edges.
    extent = torch.tensor([doubled.shape[3], doubled.shape[2]]).to(images)
    moved = _sample(doubled, (4.0 * source + 1.0) / extent - 1.0)
    crop = (len(SYM6) - 1) // 2 - 2 * _REACH
    return upfirdn(moved, taps.flip(0), down=2, pad=(crop, crop))


def _margins(maps: Tensor, size: int) -> tuple[int, int, int, int]:
    """Pixels to add left, right, top and bottom, so that all of a batch's sources are there.

    At most size - 1, which is all that reflection has; what lies beyond is 0.
    """
    centre = (size - 1) / 2
    sign = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    corners = torch.cat([sign * centre, torch.ones(4, 1)], dim=1)
    reached = torch.einsum("kj,nij->nki", corners, maps.cpu().float()).flatten(0, 1)
    needed = torch.stack([-reached.amin(0), reached.amax(0)], dim=1) + 2 * _REACH - centre
    (left, right), (top, bottom) = needed.clamp(0, size - 1).ceil().int().tolist()
    return left, right, top, bottom


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    samples: Tensor = _Sample.apply(images, grid)
    return samples


class _Sample(torch.autograd.Function):
    """Bilinear samples of images (N, C, H, W) at a grid (N, h, w, 2) that has no derivative.

    The samples are linear in the images, so every derivative is this map or its transpose. torch's
    own ``grid_sample`` is differentiable once only, and R1 needs it twice.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = images.shape
        return F.grid_sample(images, grid, align_corners=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _Spread.apply(gradient, grid, ctx.shape), None


class _Spread(torch.autograd.Function):
    """The transpose of :class:`_Sample`."""

    @staticmethod
    def forward(ctx: Any, samples: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        with torch.enable_grad():
            images = samples.new_zeros(shape, requires_grad=True)
            sampled = F.grid_sample(images, grid, align_corners=False)
        (spread,) = torch.autograd.grad(sampled, images, samples)
        return spread

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _sample(gradient, grid), None, None
