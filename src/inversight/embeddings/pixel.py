"""``pixel``: mean squared error over all values, which needs no weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from inversight.core.imaging import fit


@dataclass(frozen=True)
class Pixel:
    """One block (N, 3 H W), the RGB image at ``size`` (H, W) over sqrt(3 H W).

    ``d(x, y)`` is the mean squared error over all values of images in [0, 1]; in [0, 1].
    """

    size: tuple[int, int]
    name: str = "pixel"

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        rgb = fit(images, size=self.size, channels=3).flatten(1)
        return (rgb / math.sqrt(rgb.shape[1]),)
