"""KED-MI's distributional recovery (Chen et al., ICCV 2021): a diagonal Gaussian for each class.

Threat model: white box. The attacker has the target's weights, a prior trained on public images and
the critic that it was trained against. The constants are those of the published code. Differences
from the paper:

- Its prior is a GAN whose critic was trained on the target's classes, which is the arm target-aware of
  the adaptation. Any other prior with a critic works too: only real or not is asked of it.
- Its latents are normal. Here they are measured in standard deviations (:class:`Coordinates`).
- It ends with crops, as Plug & Play (paper: a few samples of each distribution, without selection).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from inversight.attacks.base import require_critic
from inversight.attacks.base_attack import Problem
from inversight.attacks.distribution import DistributionSearch
from inversight.attacks.gradient_search import ImageLoss
from inversight.core.config import settings


@settings
class KedMi(DistributionSearch):
    """KED-MI's recovery: mean and deviations of a Gaussian, one sample a step (paper: 1,500 steps)."""

    uses_critic: ClassVar[bool] = True

    identity_weight: PositiveFloat = 100.0
    """Weight of the identity loss beside the prior loss (published: 100)."""
    learning_rate: PositiveFloat = 2e-2
    """Adam's step size (published: 0.02)."""
    start_log_variance: float = 1.0
    """Initial logarithm of the variances; initial means are 0 (published: 1)."""

    def start(self, classes: int, width: int) -> list[Tensor]:
        """Return means and logarithms of variances, both (K, D)."""
        log_variance = torch.full((classes, width), self.start_log_variance)
        return [torch.zeros(classes, width), log_variance]

    def points(self, variables: Sequence[Tensor], noise: Tensor) -> Tensor:
        mean, log_variance = variables
        return mean[:, None] + (0.5 * log_variance).exp()[:, None] * noise

    def image_loss(self, problem: Problem) -> ImageLoss:
        critic = require_critic(self, problem.prior)
        identity = super().image_loss(problem)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            # -log sigmoid of the critic's logit, which the published code writes as
            # softplus(l) - l with l the log-sum-exp over its critic's classes.
            unreal = F.softplus(-critic.realness(images))
            return self.identity_weight * identity(images, labels) + unreal

        return loss
