"""Augmentation: exposed images are shown strongly changed, never as they are.

Paper: RandAugment (Cubuk et al., NeurIPS 2020) and random erasing (Zhong et al., AAAI 2020), both from
torchvision; on chosen images only is our use of them.
Protects: makes the exact exposed image harder to fit, since no step sees it twice the same.
Does not protect: gives no guarantee. What the changed copies have in common, such as a face, is still
learnt; and the channels' mean and standard deviation, as well as early stopping where an exposed image
fell into the validation split, use the images as they are.
Costs: little accuracy, as a rule; the changes run image by image on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from inversight.core.config import Fraction, settings
from inversight.core.imaging import to_float, to_uint8
from inversight.core.progress import Progress, silent
from inversight.core.seeding import draw_seed
from inversight.defences.base import Defended, Level, Material
from inversight.defences.retraining import retrained
from inversight.models.target import Target
from inversight.models.training import Variation


@settings
class Augmentation:
    """Show the exposed images strongly augmented only."""

    operations: PositiveInt = 2
    """RandAugment's operations an image (paper: 2 for ImageNet)."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """RandAugment's strength, 0 to 30 (paper: 9 for ImageNet)."""
    erase: Fraction = 0.5
    """Probability of blanking a random rectangle (paper: 0.5)."""

    @property
    def level(self) -> Level:
        return "sample"

    def fit(
        self,
        material: Material,
        undefended: Target,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
        device: torch.device | str = "cpu",
    ) -> Defended:
        """Train on all images by the same recipe, the exposed ones changed before its augmentation."""
        change = StrongAugmentation(material.exposed, self.operations, self.magnitude, self.erase)
        return retrained(
            "augmentation",
            material,
            undefended,
            variation=Variation(change=change),
            facts={"augmented": int(material.exposed.sum())},
            rng=rng,
            progress=progress,
            device=device,
        )


@dataclass(frozen=True)
class StrongAugmentation:
    """RandAugment and random erasing of the rows where ``chosen`` (N,) is true; the others as given."""

    chosen: Tensor
    operations: int
    magnitude: int
    erase: float

    @cached_property
    def _transform(self) -> Callable[[Tensor], Tensor]:
        from torchvision.transforms import v2  # takes seconds

        changed: Callable[[Tensor], Tensor] = v2.Compose(
            [
                v2.RandAugment(self.operations, self.magnitude),
                v2.RandomErasing(self.erase, value=0),
            ]
        )
        return changed

    def __call__(self, images: Tensor, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Images (B, C, H, W) in [0, 1] at ``rows`` (B,) -> images of that shape."""
        places = self.chosen[rows].nonzero().squeeze(1).tolist()
        if not places:
            return images
        changed = images.clone()
        # torchvision draws from the global generator: seeded from ours, and put back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(draw_seed(rng))
            for i in places:
                changed[i] = to_float(self._transform(to_uint8(images[i].cpu())))
        return changed
