"""The control of an audit without a holdout: samples of the prior that nobody guided.

Threat model: none. No access to the target at all, and a prior that was not adapted to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inversight.attacks.base import Reconstructions
from inversight.attacks.selection import pictures, truncated
from inversight.priors.base import Prior
from inversight.progress import Progress, silent

NAME = "control"
TRUNCATION = 0.5
"""That of the pool which Plug & Play starts from, so that guidance is all that the two differ in."""


@torch.no_grad()
def control(
    prior: Prior,
    labels: Tensor,
    *,
    rng: torch.Generator,
    truncation: float = TRUNCATION,
    batch_size: int = 200,
    progress: Progress = silent,
) -> Reconstructions:
    """A sample of ``prior`` for each of ``labels`` (M,), which are given out at random.

    The labels come back sorted. ``losses`` are NaN: nothing was preferred to anything.
    """
    latents = truncated(prior, truncation).sample(len(labels), rng=rng)
    order = torch.randperm(len(labels), generator=rng)
    latents = latents[order.to(latents.device)]
    images = pictures(prior, latents, batch_size=batch_size)
    progress(len(labels), len(labels), "samples of the prior")
    return Reconstructions(
        images=images,
        labels=labels.sort().values,
        latents=latents.cpu(),
        losses=torch.full((len(labels),), float("nan")),
        queries=0,
    )
