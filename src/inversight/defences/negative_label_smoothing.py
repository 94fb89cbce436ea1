"""Negative label smoothing: labels that are sharper than one-hot ones.

Paper: Struppek et al., "Be Careful What You Smooth For", ICLR 2024. The label is (1 - alpha) times the
class plus alpha / K for each of the K classes, with alpha below 0. The network is pushed to give the
other classes no probability at all, which makes its gradients less useful to an attack; positive
smoothing makes attacks easier.
Protects: makes attacks that use the target's gradients or scores less effective.
Does not protect: gives no guarantee. It changes gradients and scores, not what the network has
memorised, so attacks that do not use them are not affected.
Costs: calibration (overconfident scores), and some accuracy. The loss is cross-entropy, also where the
recipe has the focal loss.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from inversight.core.config import Fraction, settings
from inversight.core.errors import InputError
from inversight.defences.base import DefenceData, FitContext, TrainingDefence, TrainingPlan
from inversight.models.networks import Classifier
from inversight.models.training import Batch, Variation

Negative = Annotated[float, Field(le=0.0)]


@settings
class NegativeLabelSmoothing(TrainingDefence):
    """Smooth labels with a negative coefficient that is reached gradually."""

    name = "negative-label-smoothing"

    alpha: Negative = -0.05
    """Smoothing coefficient at the end of the training, at most 0 (paper: -0.05)."""
    hard_until: Fraction = 0.25
    """Fraction of the training with one-hot labels; sharper ones do not train an untrained network."""
    full_from: Fraction = 0.75
    """Fraction of the training after which alpha applies in full, linear before; no earlier epoch is kept."""

    def plan(self, data: DefenceData, context: FitContext) -> TrainingPlan:
        """Train on smoothed labels; early stopping uses the loss with the final alpha.

        Raises:
            InputError: the schedule ends before it begins.
        """
        if self.hard_until > self.full_from:
            raise InputError(
                "negative-label-smoothing: expected hard_until <= full_from, found "
                f"{self.hard_until:g} and {self.full_from:g}"
            )
        held_loss = partial(smoothed_loss, alpha=self.alpha)
        variation = Variation(loss=self.loss, held_loss=held_loss, settles=self.full_from)
        return TrainingPlan(variation=variation, facts={"alpha": self.alpha})

    def loss(self, module: Classifier, batch: Batch) -> Tensor:
        """Return the loss with the smoothing at this point of the training."""
        return smoothed_loss(module(batch.inputs), batch.labels, self.smoothing(batch.done))

    def smoothing(self, done: float) -> float:
        """Return the smoothing coefficient after ``done`` in [0, 1) of the training."""
        if done >= self.full_from:
            return self.alpha
        if done <= self.hard_until:
            return 0.0
        return self.alpha * (done - self.hard_until) / (self.full_from - self.hard_until)


def smoothed_loss(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Return the mean cross-entropy with labels (1 - alpha) y + alpha / K, alpha <= 1 (paper, section 2).

    It is negative for alpha < 0 once the network is confident. ``torch.nn.functional.cross_entropy``
    takes smoothing from 0 to 1 only.
    """
    log_p = F.log_softmax(logits, dim=1)
    hard = F.nll_loss(log_p, labels)
    return (1.0 - alpha) * hard - alpha * log_p.mean()
