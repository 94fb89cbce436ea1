"""Conversion between stored uint8 images and the float images of networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's convert("L")


def to_float(images: Tensor) -> Tensor:
    """Return uint8 images (N, C, H, W) as float32 in [0, 1]; float images are returned unchanged."""
    return images.float() / 255.0 if images.dtype == torch.uint8 else images


def to_uint8(images: Tensor) -> Tensor:
    """Return float images in [0, 1] as uint8, clamped and rounded to nearest."""
    return (images.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


def fit(images: Tensor, *, size: int | tuple[int, int], channels: int) -> Tensor:
    """Resize images (N, C, H, W), C of 1 or 3, to (N, channels, *size), differentiably.

    Bilinear, antialiased when shrinking. Grey becomes colour by repetition, colour becomes grey by
    BT.601 luma.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if channels != images.shape[1]:
        if channels == 3:
            images = images.expand(-1, 3, -1, -1)
        else:
            luma = torch.tensor(_LUMA, device=images.device, dtype=images.dtype)
            images = (images * luma[None, :, None, None]).sum(1, keepdim=True)
    if images.shape[-2:] == (height, width):
        return images
    shrinks = height < images.shape[-2] or width < images.shape[-1]
    return F.interpolate(
        images, size=(height, width), mode="bilinear", align_corners=False, antialias=shrinks
    )


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (image - mean) / std for images (N, C, H, W); ``mean`` and ``std`` have C values, or one."""
    shift, scale = (images.new_tensor(values)[:, None, None] for values in (mean, std))
    return (images - shift) / scale
