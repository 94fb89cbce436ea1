"""An attack: latents are changed at random, and kept where the target becomes more confident.

Try it on the digits, beside the default attack, from the folder that this file is in:

    inversight audit --attack plug-and-play --attack attack:HillClimbing

Settings go into a file for --config:

    attack:
      - plug-and-play
      - {class: attack:HillClimbing, steps: 200}

It asks the target for scores alone, so it works on ONNX files and services (--target endpoint:URL) too.
"""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks import Reconstructions
from inversight.core.config import settings
from inversight.core.progress import Progress, silent
from inversight.models.target import Access, Target
from inversight.priors import Prior


@settings
class HillClimbing:
    """Change latents at random and keep the changes that raise the target's confidence."""

    pool: PositiveInt = 500
    """Samples of the prior from which each class takes its start."""
    keep: PositiveInt = 10
    """Reconstructions of each class."""
    steps: PositiveInt = 60
    """Random changes of each latent."""
    scale: PositiveFloat = 0.2
    """Standard deviation of a change."""

    @property
    def access(self) -> Access:
        """What the attack needs of the target. The audit gives it no more, and counts the queries."""
        return Access.SCORES

    @torch.no_grad()
    def run(
        self, target: Target, prior: Prior, labels: Tensor, *, rng: torch.Generator,
        progress: Progress = silent,
    ) -> Reconstructions:  # fmt: skip
        """Reconstruct each class in ``labels`` (L,).

        Returns:
            ``keep`` images of each class, best first, with their latents and losses.
        """
        pool = prior.sample(self.pool, rng=rng)
        confidence = target(prior(pool)).softmax(1)[:, labels]
        start = confidence.topk(self.keep, dim=0)
        latents = pool[start.indices.T.flatten()]  # class by class
        best = start.values.T.flatten()
        wanted = labels.repeat_interleave(self.keep)
        for step in range(self.steps):
            noise = torch.randn(latents.shape, generator=rng).to(latents)
            changed = latents + self.scale * noise
            reached = target(prior(changed)).softmax(1).gather(1, wanted[:, None]).squeeze(1)
            better = reached > best
            latents[better], best[better] = changed[better], reached[better]
            progress(step + 1, self.steps, f"confidence {float(best.mean()):.2f}")
        order = torch.cat([
            best[wanted == label].argsort(descending=True) + self.keep * i
            for i, label in enumerate(labels)
        ])  # fmt: skip
        latents, best = latents[order], best[order]
        return Reconstructions(prior(latents), wanted, latents, 1.0 - best)
