"""Plug & Play attack (Struppek et al., ICML 2022), the base attack of the paper.

Threat model: white box. The attacker has the target's weights and a prior trained on public images.
"""

from __future__ import annotations

import math

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.base import Reconstructions, require_access
from inversight.attacks.selection import (
    Crops,
    classified_pool,
    pictures,
    robust_confidence,
    surest,
)
from inversight.config import Fraction, settings
from inversight.errors import InputError
from inversight.objectives import poincare
from inversight.priors.base import Prior
from inversight.progress import Progress, silent
from inversight.seeding import draw_seed, generator
from inversight.target import Access, Target


@settings
class PlugAndPlay:
    """Plug & Play: choose latents, optimise them in W, keep those that survive random crops."""

    pool: PositiveInt = 5000
    """Latents sampled and classified once, for all classes together (paper: 5,000)."""
    truncation: Fraction = 0.5
    """Truncation of the pool towards the mean latent (paper: 0.5)."""
    candidates: PositiveInt = 200
    """Latents optimised for each class, all distinct (paper: 200)."""
    steps: PositiveInt = 70
    """Optimisation steps (paper: 70)."""
    learning_rate: PositiveFloat = 5e-3
    """Adam's step size (paper: 5e-3)."""
    betas: tuple[Fraction, Fraction] = (0.1, 0.1)
    """Adam's betas (paper: 0.1, 0.1)."""
    keep: PositiveInt = 50
    """Reconstructions kept for each class (paper: 50)."""
    crops: PositiveInt = 100
    """Random crops a candidate's confidence is averaged over (paper: 100)."""
    crop_scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 0.9)
    """Smallest and largest share of the area in a crop (paper: 0.5, 0.9)."""
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.2)
    """Smallest and largest aspect ratio of a crop (paper: 0.8, 1.2)."""
    crop_flip: bool = True
    """Mirror half of the crops; switch off where left and right matter, as for digits."""
    batch_size: PositiveInt = 200
    """Images that go through prior and target at once; changes memory, not results."""

    @property
    def access(self) -> Access:
        return Access.WHITE_BOX

    def run(
        self,
        target: Target,
        prior: Prior,
        labels: Tensor,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
    ) -> Reconstructions:
        """Reconstruct each class in ``labels`` (distinct class indices).

        Raises:
            InputError: the target gives no gradients, or the settings contradict each other.
        """
        require_access(self, target)
        if not self.keep <= self.candidates <= self.pool:
            raise InputError(
                "PlugAndPlay: expected keep <= candidates <= pool, found "
                f"keep={self.keep}, candidates={self.candidates}, pool={self.pool}"
            )
        seed = draw_seed(rng)
        per_class = math.ceil(self.candidates / self.batch_size)
        total = len(labels) * per_class + 2
        pool = classified_pool(
            target, prior, self.pool, truncation=self.truncation,
            batch_size=self.batch_size, rng=generator(seed, "pool"),
        )  # fmt: skip
        progress(1, total, "pool classified")

        flat = pool.latents[pool.best(labels, self.candidates)].flatten(0, 1)
        wanted = labels.repeat_interleave(self.candidates)
        batches = list(zip(flat.split(self.batch_size), wanted.split(self.batch_size), strict=True))
        optimised = []
        total = len(batches) + 2
        for done, (start, label) in enumerate(batches, start=2):
            optimised.append(self._optimise(target, prior, start, label))
            progress(done, total, "latents optimised")
        flat = torch.cat(optimised)

        crops = Crops(self.crops, self.crop_scale, self.crop_ratio, self.crop_flip)
        confidence = robust_confidence(
            target, prior, flat, wanted, crops,
            batch_size=self.batch_size, rng=generator(seed, "crops"),
        )  # fmt: skip
        index = surest(confidence, len(labels), self.keep)
        images = pictures(prior, flat[index], batch_size=self.batch_size)
        progress(total, total, "reconstructions selected")
        return Reconstructions(
            images=images,
            labels=wanted[index].clone(),
            latents=flat[index].cpu(),
            losses=1.0 - confidence[index],
        )

    def _optimise(self, target: Target, prior: Prior, start: Tensor, labels: Tensor) -> Tensor:
        latents = start.detach().clone().requires_grad_(True)
        optimiser = torch.optim.Adam([latents], lr=self.learning_rate, betas=self.betas)
        labels = labels.to(latents.device)
        for _ in range(self.steps):
            # The sum makes each latent's gradient its own, whatever else is in the batch.
            loss = poincare(target(prior(latents)), labels).sum()
            (latents.grad,) = torch.autograd.grad(loss, latents)
            optimiser.step()
        return latents.detach()
