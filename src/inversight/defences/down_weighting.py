"""Down-weighting: protected images have a lower weight in the loss.

Paper: none of its own; a weight for each image in the loss, as in importance weighting.
Protects: scales down the gradient of protected images in each step.
Does not protect: gives no guarantee, and a small weight does not prevent memorisation: a network that
can fit every image fits one with a small weight too, later in training (Byrd & Lipton 2019). The images
still pass through the network, so the running statistics of batch normalisation and the channels' mean
and standard deviation hold them in full; removal alone takes them out.
Costs: part of the accuracy that removal costs.
"""

from __future__ import annotations

import torch

from inversight.core.config import Fraction, settings
from inversight.defences.base import DefenceData, FitContext, TrainingDefence, TrainingPlan
from inversight.models.training import Variation


@settings
class DownWeighting(TrainingDefence):
    """Give the protected images a lower weight in the loss."""

    name = "down-weighting"
    level = "sample"

    weight: Fraction = 0.1
    """Weight of a protected image in the loss; others have 1; no published value."""

    def plan(self, data: DefenceData, context: FitContext) -> TrainingPlan:
        """Train on all images with weights in the recipe's loss."""
        weights = torch.where(data.protected, self.weight, 1.0)
        facts = {"weighted": int(data.protected.sum()), "weight": self.weight}
        return TrainingPlan(variation=Variation(weights=weights), facts=facts)
