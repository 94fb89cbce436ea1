"""Removal: protected images are not trained on.

Paper: none of its own; retraining without images is the plain form of unlearning (Bourtoule et al., S&P
2021, who make it cheap).
Protects: what the model would have learnt from the removed images alone. It never saw them, so neither
their pixels nor statistics of them can be in it.
Does not protect: the other images, some of which may then be at the highest risk (the "onion effect",
Carlini et al. 2022); nor what a removed image shares with images that stay, near copies above all.
Costs: the accuracy that those images contributed, most where a class has few; a training without them.
"""

from __future__ import annotations

from inversight.core.config import settings
from inversight.defences.base import DefenceData, FitContext, TrainingDefence, TrainingPlan


@settings
class Removal(TrainingDefence):
    """Train without the protected images."""

    name = "removal"
    level = "sample"

    def plan(self, data: DefenceData, context: FitContext) -> TrainingPlan:
        """Train on the other images.

        Raises:
            StageError: a class would be left without images.
        """
        data.check_classes_left("removal")
        kept = data.private.select((~data.protected).nonzero().squeeze(1))
        return TrainingPlan(images=kept, facts={"removed": int(data.protected.sum())})
