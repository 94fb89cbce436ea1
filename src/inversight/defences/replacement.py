"""Replacement: each protected image is replaced by a mixture of two others of its class.

Paper: mixup (Zhang et al., ICLR 2018), here within a class and in place of the image.
Protects: what the model would have learnt from the protected images alone, as removal does: a
replacement is made of other images, drawn independently of the protected image, so nothing of it
reaches the model. Its nearest neighbour would resemble it more, but choosing that would reveal where
the protected image lies.
Does not protect: the other images, some of which now have more weight and may be at risk
themselves.
Costs: less accuracy than removal where classes are small, since the class keeps its weight; mixtures of
pixels are blurred images.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from inversight.core.config import settings
from inversight.core.imaging import to_float, to_uint8
from inversight.data import ImageSet, pixel_hash, to_pil
from inversight.defences.base import DefenceData, FitContext, TrainingDefence, TrainingPlan


@settings
class Replacement(TrainingDefence):
    """Replace the protected images by mixtures of others of their class."""

    name = "replacement"
    level = "sample"

    def plan(self, data: DefenceData, context: FitContext) -> TrainingPlan:
        """Train on as many images as before.

        Raises:
            StageError: a class has only protected images.
        """
        data.check_classes_left("replacement")
        return TrainingPlan(
            images=with_replacements(data, rng=context.rng),
            facts={"replaced": int(data.protected.sum())},
        )


def with_replacements(data: DefenceData, *, rng: torch.Generator) -> ImageSet:
    """Return the private set with each protected image replaced by a mixture of two others of its class.

    The two are drawn without replacement (the same one twice if the class has one only) and mixed with
    a uniform coefficient: mixup with alpha 1.
    """
    private, protected = data.private, data.protected
    images, hashes = private.images.clone(), list(private.hashes)
    for row in protected.nonzero().squeeze(1).tolist():
        others = (~protected & (private.labels == private.labels[row])).nonzero().squeeze(1)
        pair = others[torch.randperm(len(others), generator=rng)[:2]]
        share = float(torch.rand((), generator=rng))
        first, second = to_float(private.images[pair[[0, -1]]])
        images[row] = to_uint8(share * first + (1.0 - share) * second)
        hashes[row] = pixel_hash(to_pil(images[row]))
    return replace(private, images=images, hashes=tuple(hashes))
