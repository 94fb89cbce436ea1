"""Transforms images by affine maps without aliasing, with derivatives of any order.

Karras et al. 2020, "Training GANs with Limited Data", appendix B: images are reflected at their
borders, doubled with the low-pass filter of a wavelet, sampled bilinearly and halved with the same
filter. The wavelet is orthogonal, so the identity and whole-pixel shifts leave pixel values unchanged.
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
"""Pixels of the image covered by half of the filter, which is applied at twice the size."""


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Transform each of the images (N, C, S, S) by its own output-to-input map (N, 2, 3).

    Maps act on (x, y, 1) in units of half an image from the centre, as in ``F.affine_grid``.
    """
    size = images.shape[-1]
    centre = (size - 1) / 2
    maps = torch.cat([maps[:, :, :2], maps[:, :, 2:] * (size / 2)], dim=2)  # now in pixels
    left, right, top, bottom = _margins(maps, size)
    maps = maps.to(images)
    taps = make_filter(SYM6).to(images)
    doubled = double(F.pad(images, (left, right, top, bottom), mode="reflect"), taps)
    # Half-pixel steps over the output and the filter's reach beyond it, mapped to the input.
    steps = torch.arange(2 * size + 4 * _REACH).to(images) / 2 - _REACH - centre
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=2)
    origin = torch.tensor([left + centre, top + centre]).to(images)
    source = torch.einsum("hwj,nij->nhwi", points, maps) + origin
    # Pixel i is sample 2 i of the doubled images; grid_sample has -1 and 1 at the outer edges.
    extent = torch.tensor([doubled.shape[3], doubled.shape[2]]).to(images)
    moved = sample(doubled, (4.0 * source + 1.0) / extent - 1.0)
    crop = (len(SYM6) - 1) // 2 - 2 * _REACH
    return upfirdn(moved, taps.flip(0), down=2, pad=(crop, crop))


def _margins(maps: Tensor, size: int) -> tuple[int, int, int, int]:
    """Return the padding left, right, top and bottom that holds all source pixels of a batch.

    At most size - 1, the limit of reflection; pixels beyond are 0.
    """
    centre = (size - 1) / 2
    sign = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    corners = torch.cat([sign * centre, torch.ones(4, 1)], dim=1)
    reached = torch.einsum("kj,nij->nki", corners, maps.cpu().float()).flatten(0, 1)
    needed = torch.stack([-reached.amin(0), reached.amax(0)], dim=1) + 2 * _REACH - centre
    (left, right), (top, bottom) = needed.clamp(0, size - 1).ceil().int().tolist()
    return left, right, top, bottom


def sample(images: Tensor, grid: Tensor) -> Tensor:
    """Return bilinear samples of images (N, C, H, W) at ``grid`` (N, h, w, 2), which has no derivative.

    Has derivatives of any order with respect to the images; ``F.grid_sample`` has only the first, and
    R1 needs the second.
    """
    samples: Tensor = _Sample.apply(images, grid, None)
    return samples


class _Sample(torch.autograd.Function):
    """Sample ``values`` at a grid, or apply the transpose of this linear map, to images of ``shape``."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, grid: Tensor, shape: torch.Size | None) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = values.shape if shape is None else None
        if shape is None:
            return F.grid_sample(values, grid, align_corners=False)
        with torch.enable_grad():
            images = values.new_zeros(shape, requires_grad=True)
            sampled = F.grid_sample(images, grid, align_corners=False)
        return torch.autograd.grad(sampled, images, values)[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Sample.apply(gradient, *ctx.saved_tensors, ctx.shape), None, None
