"""The control of an audit without a holdout: unguided samples of the prior.

Threat model: none. No access to the target, and a prior that was not adapted to it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from inversight.attacks.base import Attack, Reconstructions, truncated
from inversight.attacks.selection import render
from inversight.core.progress import Progress, silent
from inversight.priors.base import Prior

NAME = "control"


@torch.no_grad()
def control(
    prior: Prior, labels: Tensor, *, rng: torch.Generator, truncation: float = 1.0,
    batch_size: int = 200, progress: Progress = silent,
) -> Reconstructions:  # fmt: skip
    """Return a sample of ``prior`` for each of ``labels`` (M,), which are assigned at random.

    ``truncation`` in [0, 1]: see :func:`control_truncation`. The returned labels are sorted. ``losses``
    are NaN: nothing was selected.
    """
    latents = truncated(prior, truncation).sample(len(labels), rng=rng)
    order = torch.randperm(len(labels), generator=rng)
    latents = latents[order.to(latents.device)]
    images = render(prior, latents, batch_size=batch_size)
    progress(len(labels), len(labels), "samples of the prior")
    losses = torch.full((len(labels),), float("nan"))
    return Reconstructions(images, labels.sort().values, latents.cpu(), losses, queries=0)


def control_truncation(attacks: Iterable[Attack]) -> float:
    """Return the truncation of the most varied pool of the attacks, in [0, 1]; 1 is none.

    The control is then as varied as any attack, so that variety alone makes no gap between them.
    """
    truncations = [getattr(attack, "truncation", None) for attack in attacks]
    return max(1.0 if psi is None else float(psi) for psi in truncations)
