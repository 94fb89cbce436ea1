"""Negative label smoothing: labels sharper than hard ones.

Paper: Struppek et al., "Be Careful What You Smooth For", ICLR 2024. The label is (1 - alpha) times the
class plus alpha / K for each of the K classes, with alpha below 0. The network is pushed to give the
other classes no probability at all, which makes its gradients poor guides for an attack; positive
smoothing makes attacks easier.
Protects: makes attacks that follow the target's gradients or scores find less.
Does not protect: gives no guarantee. It acts on the guide and not on what is stored, so attacks that
find their way without it are not concerned.
Costs: calibration (overconfident scores), and some accuracy. Cross-entropy always; a recipe with focal
loss loses it here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from inversight.core.config import Fraction, settings
from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.defences.base import Defended, Level, Material
from inversight.defences.retraining import retrained
from inversight.models.networks import Classifier
from inversight.models.target import Target
from inversight.models.training import Batch, Variation

Negative = Annotated[float, Field(le=0.0)]


@settings
class NegativeLabelSmoothing:
    """Smooth labels by a negative share, moved towards step by step."""

    alpha: Negative = -0.05
    """The share at the end, at most 0 (paper: -0.05)."""
    hard_until: Fraction = 0.25
    """Share of the training with hard labels; sharper ones from the start teach nothing yet."""
    full_from: Fraction = 0.75
    """Share of the training from which alpha is whole; linear in between. No earlier epoch is kept."""

    @property
    def level(self) -> Level:
        return "model"

    def fit(
        self,
        material: Material,
        undefended: Target,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
        device: torch.device | str = "cpu",
    ) -> Defended:
        """Train by the same recipe on such labels; early stopping looks at the final alpha's loss.

        Raises:
            InputError: the schedule ends before it begins.
        """
        if self.hard_until > self.full_from:
            raise InputError(
                "negative-label-smoothing: expected hard_until <= full_from, found "
                f"{self.hard_until:g} and {self.full_from:g}"
            )
        loss = ScheduledSmoothing(self.alpha, self.hard_until, self.full_from)
        return retrained(
            "negative-label-smoothing",
            material,
            undefended,
            variation=Variation(
                loss=loss,
                held_loss=lambda logits, labels: smoothed_loss(logits, labels, self.alpha),
                settles=self.full_from,
            ),
            facts={"alpha": self.alpha},
            rng=rng,
            progress=progress,
            device=device,
        )


@dataclass(frozen=True)
class ScheduledSmoothing:
    """Label smoothing whose share goes from 0 to ``alpha`` while the training is between two shares."""

    alpha: float
    hard_until: float
    full_from: float

    def at(self, done: float) -> float:
        """The share of smoothing where ``done`` in [0, 1) of the training lies behind."""
        if done >= self.full_from:
            return self.alpha
        if done <= self.hard_until:
            return 0.0
        return self.alpha * (done - self.hard_until) / (self.full_from - self.hard_until)

    def __call__(self, module: Classifier, batch: Batch) -> Tensor:
        return smoothed_loss(module(batch.inputs), batch.labels, self.at(batch.done))


def smoothed_loss(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Mean cross-entropy with labels (1 - alpha) y + alpha / K, any alpha up to 1 (paper, section 2).

    Below 0 for alpha < 0 once the network is sure. ``torch.nn.functional.cross_entropy`` smooths by
    shares from 0 to 1 only.
    """
    log_p = F.log_softmax(logits, dim=1)
    hard = F.nll_loss(log_p, labels)
    return (1.0 - alpha) * hard - alpha * log_p.mean()
