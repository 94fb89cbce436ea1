"""Random transformations of images, under which a prediction should not change."""

from __future__ import annotations

import math

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from inversight.core.config import Fraction, settings


@settings
class Transformations:
    """A crop, brightness, contrast, a mirror and a rotation: PLG-MI's, in its published code's order."""

    least_area: Fraction = Field(default=0.8, gt=0.0)
    """Smallest share of the area in a square crop (published: 0.8); 1: none is cut."""
    brightness: Fraction = 0.2
    """Most that brightness is multiplied by more or less than 1 (published: 0.2)."""
    contrast: Fraction = 0.2
    """Most that contrast is multiplied by more or less than 1 (published: 0.2)."""
    degrees: NonNegativeFloat = 5.0
    """Largest angle of a rotation, either way (published: 5)."""

    def __call__(self, images: Tensor, rng: torch.Generator, *, mirror: bool) -> Tensor:
        """Transform images (N, C, H, W) in [0, 1], differentiably.

        One draw for all images, so that no image's result depends on what else is in the batch.
        ``mirror``: half of the draws are mirrored.
        """
        from torchvision.transforms import InterpolationMode  # takes seconds
        from torchvision.transforms.v2 import functional as T

        u = torch.rand(7, generator=rng).tolist()
        height, width = images.shape[-2:]
        side = math.sqrt(self.least_area + u[0] * (1.0 - self.least_area))
        h, w = round(side * height), round(side * width)
        top, left = int(u[1] * (height - h + 1)), int(u[2] * (width - w + 1))
        changed: Tensor = images
        if (h, w) != (height, width):
            changed = T.resized_crop(changed, top, left, h, w, [height, width], antialias=True)
        changed = T.adjust_brightness(changed, 1.0 + self.brightness * (2.0 * u[3] - 1.0))
        changed = T.adjust_contrast(changed, 1.0 + self.contrast * (2.0 * u[4] - 1.0))
        if mirror and u[5] < 0.5:
            changed = T.horizontal_flip(changed)
        if self.degrees > 0:
            angle = self.degrees * (2.0 * u[6] - 1.0)
            changed = T.rotate(changed, angle, interpolation=InterpolationMode.BILINEAR)
        return changed
