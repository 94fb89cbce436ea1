"""GMI, generative model inversion (Zhang et al., CVPR 2020): latents, with the critic's prior loss.

Threat model: white box. The attacker has the target's weights, a prior trained on public images and
the critic that it was trained against. Differences from the paper:

- Its latents are normal. Here they are measured in standard deviations (:class:`Coordinates`).
- It starts from the most confident samples of a pool and ends with crops, as Plug & Play (paper: five
  random starts, of which the most confident is kept).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.base import require_critic
from inversight.attacks.constraints import Coordinates
from inversight.attacks.gradient_search import (
    Candidates,
    ImageLoss,
    Improve,
    LatentProblem,
    LatentSearch,
)
from inversight.attacks.objectives import ObjectiveName
from inversight.core.config import Fraction, settings
from inversight.priors.descent import descend


@settings
class Gmi(LatentSearch):
    """GMI: descend identity loss and the critic's prior loss together, by momentum."""

    uses_critic: ClassVar[bool] = True

    truncation: Fraction = 1.0
    """Truncation of the pool towards the mean latent (paper: none, 1)."""
    objective: ObjectiveName = "cross-entropy"
    """The identity loss (paper: cross-entropy)."""
    identity_weight: PositiveFloat = 100.0
    """Weight of the identity loss beside the prior loss (paper: 100)."""
    steps: PositiveInt = 1500
    """Steps of each candidate (paper: 1,500)."""
    learning_rate: PositiveFloat = 2e-2
    """Step size (paper: 0.02)."""
    momentum: Fraction = Field(default=0.9, gt=0.0)
    """Nesterov's momentum (paper: 0.9)."""
    bound: PositiveFloat = 1.0
    """Standard deviations from the mean beyond which latents are clipped (published code: 1)."""

    def identity_loss(self, problem: LatentProblem) -> ImageLoss:
        """Return the loss that draws images to their class."""
        return self.image_loss(problem)

    def optimiser(self, variables: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            variables, lr=self.learning_rate, momentum=self.momentum, nesterov=True
        )

    def begin(self, problem: LatentProblem) -> Improve:
        critic = require_critic(self, problem.prior)
        space = Coordinates.of(problem.pool.latents)
        identity = self.identity_loss(problem)

        def clip(variables: Sequence[Tensor]) -> list[Tensor]:
            return [one.clamp(-self.bound, self.bound) for one in variables]

        def improve(start: Tensor, labels: Tensor) -> Candidates:
            def losses(variables: Sequence[Tensor]) -> list[Tensor]:
                images = problem.prior(space.latents(variables[0]))
                # Wasserstein's prior loss: the critic's output itself (eq. 4).
                return [self.identity_weight * identity(images, labels) - critic.realness(images)]

            (points,) = descend(
                clip([space.points(start)]), losses, steps=self.steps, constrain=clip,
                optimiser=self.optimiser,
            )  # fmt: skip
            return Candidates(space.latents(points))

        return improve
