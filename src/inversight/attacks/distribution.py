"""Attacks that search for a distribution of latents for each class, and then sample from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from pydantic import PositiveInt
from torch import Tensor

from inversight.attacks.base import Reconstructions, check_fits
from inversight.attacks.constraints import Coordinates
from inversight.attacks.objectives import OBJECTIVES, ObjectiveName
from inversight.attacks.selection import FinalSelection, truncated
from inversight.core.config import Fraction, settings
from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import draw_seed, generator
from inversight.models.target import Access, Target
from inversight.priors.base import Prior
from inversight.priors.descent import descend


@settings
class DistributionSearch(FinalSelection, ABC):
    """Variables of each class's distribution are descended on samples of it (reparametrised).

    Points are latents in standard deviations of the prior's samples, where the prior is about
    N(0, I). K classes at once, S samples each, D coordinates.
    """

    pool: PositiveInt = 5000
    """Samples of the prior from which the mean and deviations of its latents are taken."""
    truncation: Fraction = 1.0
    """Truncation of these samples towards the mean latent (1: none)."""
    objective: ObjectiveName = "cross-entropy"
    """What is descended (paper: cross-entropy)."""
    samples: PositiveInt = 1
    """Samples of a class's distribution in each step."""
    steps: PositiveInt = 1500
    """Steps of each class."""

    @property
    def access(self) -> Access:
        return Access.WHITE_BOX

    @property
    def common(self) -> dict[str, int]:
        """Nothing is sent for all classes together: the pool only gives mean and deviations."""
        return {}

    @property
    def image_steps(self) -> int:
        """Images that go forward and back for a class, over all steps."""
        return self.samples * self.steps

    def check(self, target: Target, prior: Prior) -> None:
        """Refuse a target or a prior that lacks what the attack needs, before the first query.

        Raises:
            InputError: it does, or the settings contradict each other.
        """
        if not self.keep <= self.candidates:
            raise InputError(
                f"{type(self).__name__}: expected keep <= candidates, found "
                f"keep={self.keep}, candidates={self.candidates}"
            )

    @abstractmethod
    def start(self, classes: int, width: int) -> list[Tensor]:
        """Variables of the distributions, each (K, ...)."""

    @abstractmethod
    def points(self, variables: Sequence[Tensor], noise: Tensor) -> Tensor:
        """Points (K, S, D) of standard normal ``noise`` (K, S, D)."""

    @abstractmethod
    def optimiser(self, variables: list[Tensor]) -> torch.optim.Optimizer:
        """What descends."""

    def image_loss(self, target: Target, prior: Prior) -> Callable[[Tensor, Tensor], Tensor]:
        """Images (N, C, H, W) and labels (N,) -> losses (N,)."""
        objective = OBJECTIVES[self.objective]
        return lambda images, labels: objective(target(images), labels)

    def divergence(self, variables: Sequence[Tensor], noise: Tensor) -> Tensor | None:
        """What is added to each class's loss, (K,); may be estimated from the step's ``noise``."""
        return None

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
            InputError: the target gives no gradients, the prior lacks what the attack needs, or the
                settings contradict each other.
        """
        check_fits(self, target, prior)
        loss = self.image_loss(target, prior)
        seed = draw_seed(rng)
        sample = truncated(prior, self.truncation).sample(self.pool, rng=generator(seed, "pool"))
        space = Coordinates.of(sample)
        classes = labels.split(max(1, self.batch_size // self.samples))
        total = len(classes) + 1
        found = []
        for done, some in enumerate(classes, start=1):
            found.append(self._sampled(prior, some, space, loss, seed))
            progress(done, total, "distributions found")
        wanted = labels.repeat_interleave(self.candidates)
        made = self.select(
            target, prior, torch.cat(found), wanted, rng=generator(seed, "crops")
        ).reconstructions
        progress(total, total, "reconstructions selected")
        return made

    def _sampled(
        self, prior: Prior, labels: Tensor, space: Coordinates,
        loss: Callable[[Tensor, Tensor], Tensor], seed: int,
    ) -> Tensor:  # fmt: skip
        """Candidates (len(labels) x candidates, ...) from the distributions of some classes."""
        device = space.mean.device
        noises = [generator(seed, "noise", label) for label in labels.tolist()]
        wanted = labels.repeat_interleave(self.samples).to(device)

        def noise(count: int) -> Tensor:
            drawn = [torch.randn(count, space.width, generator=own) for own in noises]
            return torch.stack(drawn).to(device)

        def losses(variables: Sequence[Tensor]) -> Iterator[Tensor]:
            drawn = noise(self.samples)
            for rows in torch.arange(len(wanted), device=device).split(self.batch_size):
                points = self.points(variables, drawn).flatten(0, 1)[rows]
                yield loss(prior(space.latents(points)), wanted[rows]) / self.samples
            apart = self.divergence(variables, drawn)
            if apart is not None:
                yield apart

        start = [one.to(device) for one in self.start(len(labels), space.width)]
        variables = descend(start, losses, optimiser=self.optimiser, steps=self.steps)
        with torch.no_grad():
            points = self.points(variables, noise(self.candidates)).flatten(0, 1)
            return space.latents(points)
