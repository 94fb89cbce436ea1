"""What white-box attacks share: the search from a pool to the best candidates.

An attack says how candidates of a class are improved (:meth:`LatentSearch.begin`); which samples of
the prior they begin as, and which of them are kept, is the same for all, Plug & Play's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from pydantic import PositiveInt
from torch import Tensor

from inversight.attacks.base import Reconstructions, check_fits
from inversight.attacks.selection import FinalSelection, Pool, classified_pool
from inversight.core.config import Fraction, settings
from inversight.core.device import reduced_precision
from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import draw_seed, generator
from inversight.models.target import Access, Target
from inversight.priors.base import Prior


@dataclass(frozen=True)
class Problem:
    """What a search is given: the pool is the prior's samples and what the target makes of them.

    logits: latents (N, ...) -> the target's logits (N, K) of the prior's images, differentiable.
    """

    target: Target
    prior: Prior
    pool: Pool
    seed: int
    logits: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Candidates:
    """latents (N, ...) and, where they are not what the prior makes of them, images on the CPU."""

    latents: Tensor
    images: Tensor | None = None


_PARTS = 1000
"""Of the progress: the first is the pool's, the last the selection's."""

Improve = Callable[[Tensor, Tensor], Candidates]
"""Latents (N, ...) and their labels (N,) -> what they are improved to."""


@dataclass(frozen=True)
class Pixels:
    """Images as their own latents, wherever they are kept: the prior of who has none."""

    image_shape: tuple[int, int, int]
    device: torch.device

    def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
        return torch.rand(n, *self.image_shape, generator=rng).to(self.device)

    def __call__(self, latents: Tensor) -> Tensor:
        return latents.to(self.device).clamp(0.0, 1.0)


@settings
class LatentSearch(FinalSelection, ABC):
    """A search that improves the surest samples of a pool by gradients, each for itself."""

    pool: PositiveInt = 5000
    """Latents sampled and classified once, for all classes together (Plug & Play: 5,000)."""
    truncation: Fraction = 0.5
    """Truncation of the pool towards the mean latent (Plug & Play: 0.5)."""
    steps: PositiveInt = 70
    """Steps of each candidate (Plug & Play: 70)."""
    half: bool = False
    """Search and select in bfloat16 where the hardware is faster at it (papers: float32); pictures are
    made in float32. Its rounding depends on what else is in a batch."""

    @property
    def access(self) -> Access:
        return Access.WHITE_BOX

    @property
    def image_steps(self) -> int:
        """Images that go forward and back for a class, over all steps."""
        return self.candidates * self.steps

    def check(self, target: Target, prior: Prior) -> None:
        """Refuse a target or a prior that lacks what the attack needs, before the first query.

        Raises:
            InputError: it does, or the settings contradict each other.
        """
        if not self.keep <= self.candidates <= self.pool:
            raise InputError(
                f"{type(self).__name__}: expected keep <= candidates <= pool, found "
                f"keep={self.keep}, candidates={self.candidates}, pool={self.pool}"
            )

    def logits(self, target: Target, prior: Prior) -> Callable[[Tensor], Tensor]:
        """Latents (N, ...) -> the target's logits (N, K) of their images."""
        return lambda latents: target(prior(latents))

    @abstractmethod
    def begin(self, problem: Problem) -> Improve:
        """What the attack does with candidates."""

    def improved(
        self, problem: Problem, start: Tensor, wanted: Tensor, progress: Progress
    ) -> tuple[Candidates, Tensor]:
        """What becomes of all candidates, latents ``start`` (N, ...) of the labels ``wanted`` (N,).

        Class by class, as many of each; with their labels, since some may have been given up.
        """
        improve = self.begin(problem)
        batches = list(
            zip(start.split(self.batch_size), wanted.split(self.batch_size), strict=True)
        )
        improved = []
        for done, (some, labels) in enumerate(batches, start=1):
            improved.append(improve(some, labels.to(some.device)))
            progress(done, len(batches), "latents optimised")
        images = [one.images for one in improved if one.images is not None]
        latents = torch.cat([one.latents for one in improved])
        return Candidates(latents, torch.cat(images) if images else None), wanted

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
            InputError: the target gives no gradients, target or prior lack what the attack needs, or
                the settings contradict each other.
        """
        check_fits(self, target, prior)
        seed = draw_seed(rng)
        pool = classified_pool(
            target, prior, self.pool, truncation=self.truncation,
            batch_size=self.batch_size, rng=generator(seed, "pool"),
        )  # fmt: skip
        progress(1, _PARTS, "pool classified")
        flat = pool.latents[pool.best(labels, self.candidates)].flatten(0, 1)
        wanted = labels.repeat_interleave(self.candidates)

        def within(done: int, total: int, note: str = "") -> None:
            progress(1 + round((_PARTS - 2) * done / total), _PARTS, note)

        with reduced_precision(flat.device, self.half):
            problem = Problem(target, prior, pool, seed, self.logits(target, prior))
            found, wanted = self.improved(problem, flat, wanted, within)
            made = self.select(
                target,
                prior if found.images is None else Pixels(prior.image_shape, flat.device),
                found.latents if found.images is None else found.images,
                wanted,
                rng=generator(seed, "crops"),
            )
        progress(_PARTS, _PARTS, "reconstructions selected")
        latents = found.latents[made.rows.to(found.latents.device)].cpu()
        return replace(made.reconstructions, latents=latents)
