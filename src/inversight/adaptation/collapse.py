"""Detects mode collapse: an adapted prior that generates few of the target's classes."""

from __future__ import annotations

import torch

from inversight.adaptation.terms import entropy_of
from inversight.models.target import Target
from inversight.priors.base import Prior

IMAGES = 1024
"""Number of samples for the mean prediction."""

LOW = 0.7
"""Below this fraction of the value before the adaptation, the prior has lost classes."""


@torch.no_grad()
def class_entropy(
    target: Target, prior: Prior, *, rng: torch.Generator, images: int = IMAGES, batch: int = 64
) -> float:
    """Return the entropy in nats, in [0, log K], of the target's mean prediction for samples.

    log K: uniform over the K classes; 0: all of one class. If it is lower after an adaptation, attacks
    start from fewer classes.
    """
    total = torch.zeros(target.num_classes)
    for latents in prior.sample(images, rng=rng).split(batch):
        total += target(prior(latents)).softmax(1).sum(0).cpu()
    return float(entropy_of(total / total.sum()))
