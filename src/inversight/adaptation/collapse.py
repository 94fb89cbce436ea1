"""Whether an adapted prior has collapsed onto few of the target's classes."""

from __future__ import annotations

import torch

from inversight.models.target import Target
from inversight.priors.base import Prior

IMAGES = 1024
"""Samples that the mean prediction is taken over."""

LOW = 0.7
"""Below this share of what it was before the adaptation, fewer classes are within reach."""


@torch.no_grad()
def class_entropy(
    target: Target, prior: Prior, *, rng: torch.Generator, images: int = IMAGES, batch: int = 64
) -> float:
    """Entropy in nats, in [0, log K], of the target's mean prediction over the prior's images.

    log K: they spread evenly over the K classes; 0: all are of one class. Lower after an adaptation
    means that an attack starts from fewer classes.
    """
    total = torch.zeros(target.num_classes)
    for latents in prior.sample(images, rng=rng).split(batch):
        total += target(prior(latents)).softmax(1).sum(0).cpu()
    mean = total / total.sum()
    return float(-(mean * mean.clamp_min(1e-12).log()).sum())
