"""Augmentation: protected images are trained on with strong random changes, never as they are.

Paper: RandAugment (Cubuk et al., NeurIPS 2020) and random erasing (Zhong et al., AAAI 2020), both from
torchvision; on chosen images only is our use of them.
Protects: makes the exact protected image harder to fit, since each step sees it differently.
Does not protect: gives no guarantee. What the changed copies have in common, such as a face, is still
learnt; and the channels' mean and standard deviation, as well as early stopping where a protected image
fell into the validation split, use the images as they are.
Costs: little accuracy, as a rule; the changes run image by image on the CPU.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from inversight.core.config import Fraction, settings
from inversight.core.imaging import to_float, to_uint8
from inversight.core.seeding import draw_seed
from inversight.defences.base import DefenceData, FitContext, TrainingDefence, TrainingPlan
from inversight.models.training import Change, Variation


@settings
class Augmentation(TrainingDefence):
    """Train on the protected images with strong augmentation only."""

    name = "augmentation"
    level = "sample"

    operations: PositiveInt = 2
    """RandAugment's operations an image (paper: 2 for ImageNet)."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """RandAugment's strength, 0 to 30 (paper: 9 for ImageNet)."""
    erase: Fraction = 0.5
    """Probability of blanking a random rectangle (paper: 0.5)."""

    def plan(self, data: DefenceData, context: FitContext) -> TrainingPlan:
        """Train on all images, the protected ones changed before the recipe's augmentation."""
        change = self.strong_change(data.protected)
        facts = {"augmented": int(data.protected.sum())}
        return TrainingPlan(variation=Variation(change=change), facts=facts)

    def strong_change(self, chosen: Tensor) -> Change:
        """Return the change of images in [0, 1] at the rows where ``chosen`` (N,) is true."""
        from torchvision.transforms import v2  # takes seconds

        erasing = v2.RandomErasing(self.erase, value=0)
        transform = v2.Compose([v2.RandAugment(self.operations, self.magnitude), erasing])

        def change(images: Tensor, rows: Tensor, rng: torch.Generator) -> Tensor:
            places = chosen[rows].nonzero().squeeze(1).tolist()
            if not places:
                return images
            changed = images.clone()
            # torchvision draws from the global generator: seed it from ours and restore it afterwards.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(draw_seed(rng))
                for i in places:
                    changed[i] = to_float(transform(to_uint8(images[i].cpu())))
            return changed

        return change
