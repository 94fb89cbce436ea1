"""White-box attacks that search for a distribution of latents for each class, then sample from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from pydantic import PositiveInt
from torch import Tensor

from inversight.attacks.base_attack import Problem
from inversight.attacks.constraints import Coordinates
from inversight.attacks.gradient_search import Candidates, GradientSearch, ImageLoss
from inversight.attacks.objectives import ObjectiveName
from inversight.attacks.workload import Workload
from inversight.core.config import Fraction, settings
from inversight.core.seeding import generator
from inversight.priors.base import Prior
from inversight.priors.descent import descend


@settings
class DistributionSearch(GradientSearch, ABC):
    """Optimise the variables of each class's distribution on samples of it (reparametrised).

    Points are latents in standard deviations of the prior's samples, where the prior is about
    N(0, I). K classes at once, S samples each, D coordinates.
    """

    pool: PositiveInt = 5000
    """Samples of the prior that give the mean and deviations of its latents; they are not sent."""
    truncation: Fraction = 1.0
    """Truncation of these samples towards the mean latent (1: none)."""
    objective: ObjectiveName = "cross-entropy"
    """The loss (paper: cross-entropy)."""
    samples: PositiveInt = 1
    """Samples of a class's distribution in each step."""
    steps: PositiveInt = 1500
    """Steps of each class."""

    @property
    def image_steps(self) -> int:
        return self.samples * self.steps

    def workload(self, prior: Prior) -> Workload:
        # The search of a distribution costs the same, however many candidates are drawn from it.
        return replace(super().workload(prior), at_once=self.samples, scales="steps")

    @abstractmethod
    def start(self, classes: int, width: int) -> list[Tensor]:
        """Return the initial variables of the distributions, each (K, ...)."""

    @abstractmethod
    def points(self, variables: Sequence[Tensor], noise: Tensor) -> Tensor:
        """Return points (K, S, D) for standard normal ``noise`` (K, S, D)."""

    def divergence(self, variables: Sequence[Tensor], noise: Tensor) -> Tensor | None:
        """Return a term of each class's loss, (K,); may be estimated from the step's ``noise``."""
        return None

    def search(self, problem: Problem) -> Candidates:
        loss = self.image_loss(problem)
        space = Coordinates.of(problem.sample(self.pool, self.truncation, "pool"))
        groups = problem.labels.split(max(1, self.batch_size // self.samples))
        latents = []
        for done, labels in enumerate(groups, start=1):
            latents.append(self._sampled(problem, labels, space, loss))
            problem.progress(done, len(groups), "distributions optimised")
        return Candidates(torch.cat(latents))

    def _sampled(
        self, problem: Problem, labels: Tensor, space: Coordinates, loss: ImageLoss
    ) -> Tensor:
        """Optimise the distributions of some classes; return (len(labels) x candidates, ...) latents."""
        device = space.mean.device
        rngs = [generator(problem.seed, "noise", label) for label in labels.tolist()]
        wanted = labels.repeat_interleave(self.samples).to(device)

        def noise(count: int) -> Tensor:
            drawn = [torch.randn(count, space.width, generator=rng) for rng in rngs]
            return torch.stack(drawn).to(device)

        def losses(variables: Sequence[Tensor]) -> Iterator[Tensor]:
            drawn = noise(self.samples)
            for rows in torch.arange(len(wanted), device=device).split(self.batch_size):
                points = self.points(variables, drawn).flatten(0, 1)[rows]
                images = problem.prior(space.latents(points))
                yield loss(images, wanted[rows]) / self.samples
            divergence = self.divergence(variables, drawn)
            if divergence is not None:
                yield divergence

        start = [one.to(device) for one in self.start(len(labels), space.width)]
        variables = descend(start, losses, optimiser=self.optimiser, steps=self.steps)
        with torch.no_grad():
            points = self.points(variables, noise(self.candidates)).flatten(0, 1)
            return space.latents(points)
