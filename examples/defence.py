"""A defence: the model is trained for fewer epochs, so that it fits each image less closely.

Compare it with the undefended model on a finished audit of the digits, from the folder that this file is in:

    inversight audit --shadows 0 --out digits
    inversight defend digits --defence defence:EarlyStopping --seeds 3

The report says what it costs in accuracy, and whether leakage falls by more than chance.
"""

from __future__ import annotations

from dataclasses import replace

from inversight.core.config import Fraction, settings
from inversight.defences import DefenceData, TrainingDefence, TrainingPlan
from inversight.defences.base import FitContext


@settings
class EarlyStopping(TrainingDefence):
    """Train for a part of the epochs."""

    name = "early-stopping"

    share: Fraction = 0.25
    """Share of the undefended model's epochs; --set early-stopping.share=0.5 changes it."""

    def plan(self, data: DefenceData, context: FitContext) -> TrainingPlan:
        """Return the undefended model's training, but shorter; loss, images and network stay the same."""
        epochs = max(1, round(self.share * data.training.epochs))
        return TrainingPlan(training=replace(data.training, epochs=epochs))
