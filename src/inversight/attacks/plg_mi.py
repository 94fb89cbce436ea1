"""PLG-MI's reconstruction (Yuan et al., AAAI 2023): descend the max-margin loss from a class's samples.

Threat model: white box. The attacker has the target's weights and a prior conditioned on its classes, as
the arm pseudo-labels of the adaptation makes one (their first stage). The constants are those of the
published code. Differences from it:

- It searches in W, where a class's samples are its prior. Points are measured in standard deviations of
  these samples (:class:`Coordinates`), so that the step size is that of the paper's normal latents.
- It ends with crops, as Plug & Play (published: five random starts, all of which are kept).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.base import require_conditional
from inversight.attacks.base_attack import Problem
from inversight.attacks.constraints import Coordinates
from inversight.attacks.gradient_search import Candidates, GradientSearch
from inversight.attacks.objectives import ObjectiveName
from inversight.core.config import settings
from inversight.core.seeding import generator
from inversight.models.target import Target
from inversight.models.transformations import Transformations
from inversight.priors.base import Prior
from inversight.priors.descent import descend


@settings
class PlgMi(GradientSearch):
    """PLG-MI: from samples of the class, by Adam, on randomly transformed images."""

    ascending: ClassVar[tuple[str, ...]] = ("keep", "candidates", "pool")

    pool: PositiveInt = 5000
    """Samples of each class that give the mean and deviations of its latents; the first ones are the
    candidates. They are not sent to the target."""
    objective: ObjectiveName = "max-margin"
    """The loss (paper: max-margin)."""
    steps: PositiveInt = 600
    """Steps of each candidate (published: 600)."""
    learning_rate: PositiveFloat = 0.1
    """Adam's step size (published: 0.1)."""
    transformations: PositiveInt = 2
    """Random transformations of an image in each step, whose losses are summed (published: 2)."""
    transform: Transformations = Field(default_factory=Transformations)
    """The distribution of the transformations; they mirror only if the crops do."""

    @property
    def image_steps(self) -> int:
        return self.candidates * self.steps * self.transformations

    def check(self, target: Target, prior: Prior) -> None:
        super().check(target, prior)
        require_conditional(self, prior, target.num_classes)

    def search(self, problem: Problem) -> Candidates:
        prior = require_conditional(self, problem.prior, problem.target.num_classes)
        latents = []
        for done, label in enumerate(problem.labels.tolist(), start=1):
            rng = generator(problem.seed, "samples", label)
            samples = prior.sample_of(torch.full((self.pool,), label), rng=rng)
            space = Coordinates.of(samples)
            for start in samples[: self.candidates].split(self.batch_size):
                latents.append(self._improved(problem, start, label, space))
            problem.progress(done, len(problem.labels), "latents optimised")
        return Candidates(torch.cat(latents))

    def _improved(self, problem: Problem, start: Tensor, label: int, space: Coordinates) -> Tensor:
        """Improve latents (N, ...) of one class; every batch sees the same transformations."""
        labels = torch.full((len(start),), label, device=start.device)
        rng = generator(problem.seed, "transformations", label)

        def losses(variables: Sequence[Tensor]) -> list[Tensor]:
            images = problem.prior(space.latents(variables[0]))
            # In one part: parts are differentiated one by one and may not share a graph.
            parts = [
                self.loss(
                    problem.target(self.transform(images, rng, mirror=self.crop_flip)), labels
                )
                for _ in range(self.transformations)
            ]
            return [torch.stack(parts)]

        (points,) = descend(
            [space.points(start)], losses, optimiser=self.optimiser, steps=self.steps
        )
        return space.latents(points)
