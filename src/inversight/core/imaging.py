"""Conversion between stored uint8 images and the float images of networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

Size: TypeAlias = int | tuple[int, int]
"""How images are brought to one size. An integer: the shorter side is brought to it and the centre cut. A
height and a width: the largest centre of that shape is stretched to a square of the longer side, since the
images of an audit are square; a target of that input size stretches it back."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's convert("L")


def side_of(size: Size) -> int:
    """Return the height and width of images that were brought to ``size``."""
    return size if isinstance(size, int) else max(size)


def size_text(size: Size) -> str:
    """Return a size as --size takes it, such as "64" or "112x96"."""
    height, width = (size, size) if isinstance(size, int) else size
    return str(height) if height == width else f"{height}x{width}"


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
    images = with_channels(images, channels)
    if images.shape[-2:] == (height, width):
        return images
    shrinks = height < images.shape[-2] or width < images.shape[-1]
    return F.interpolate(
        images, size=(height, width), mode="bilinear", align_corners=False, antialias=shrinks
    )


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Return images (N, C, H, W) as grey (1) or colour (3): repeated, or BT.601 luma."""
    if channels == images.shape[1]:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    luma = torch.tensor(_LUMA, device=images.device, dtype=images.dtype)
    return (images * luma[None, :, None, None]).sum(1, keepdim=True)


@dataclass(frozen=True)
class Resizing:
    """A model's own way to bring an image to its input: it is resized, then its middle is cut out.

    size: height and width after resizing, or the length of the shorter side. mode: the filter, always
    antialiased. half: which way a margin of an odd number of pixels is halved, "down" (transformers) or
    "even" (torchvision and timm).
    """

    size: int | tuple[int, int]
    mode: Literal["bilinear", "bicubic"] = "bilinear"
    half: Literal["down", "even"] = "even"

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the size (h, w) of an image of ``height`` and ``width`` after resizing."""
        if not isinstance(self.size, int):
            return self.size
        short = min(height, width)
        return (int(self.size * height / short), int(self.size * width / short))

    def __call__(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Return images (N, C, h, w) in [0, 1] at ``size`` (H, W), differentiably.

        Values are not rounded to 8 bits between resizing and cutting, as they are in files.
        """
        before = self.resized(*images.shape[-2:])
        # Width, then height, as Pillow and torchvision do, since bicubic overshoots and 8 bits cannot.
        # Antialiased also when enlarging: only then is PyTorch's bicubic filter that of Pillow.
        for sides in ((images.shape[-2], before[1]), before):
            if images.shape[-2:] != sides:
                images = F.interpolate(
                    images, size=sides, mode=self.mode, align_corners=False, antialias=True
                ).clamp(0.0, 1.0)
        half = int if self.half == "down" else round
        top, left = (half((a - b) / 2.0) for a, b in zip(before, size, strict=True))
        return images[..., top : top + size[0], left : left + size[1]]


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (image - mean) / std for images (N, C, H, W); ``mean`` and ``std`` have C values, or one."""
    shift, scale = (images.new_tensor(values)[:, None, None] for values in (mean, std))
    return (images - shift) / scale
