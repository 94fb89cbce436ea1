"""LOMMA's logit loss (Nguyen et al., CVPR 2023) on GMI's search.

Threat model: white box, as GMI, and the target's penultimate features, which regularise the loss. What
differs from the paper, and why:

- Where features are on average is measured on samples of the prior, which stand for the public images
  that it was trained on: an attack here is given no images (paper: 5,000 public ones).
- Model augmentation, which distils the target into networks of other architectures on public images,
  is not built, for the same reason.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from inversight.attacks.gmi import Gmi, ImageLoss
from inversight.attacks.search import Problem
from inversight.config import settings
from inversight.embeddings.network import PooledEmbedding
from inversight.errors import InputError, TargetError
from inversight.objectives import OBJECTIVES, ObjectiveName
from inversight.priors.base import Prior
from inversight.target import Target


@settings
class Lomma(Gmi):
    """LOMMA: GMI that raises the class's logit and keeps penultimate features ordinary."""

    objective: ObjectiveName = "logit"
    """The identity loss (paper: logit, eq. 3)."""
    feature_weight: NonNegativeFloat = 1.0
    """Weight of the features' mean squared distance to their mean (published code: 1)."""

    def check(self, target: Target, prior: Prior) -> None:
        super().check(target, prior)
        try:
            pooled = PooledEmbedding("target", target)
            if target.before is None:  # where queries count, the first of them tells it
                device = pooled.last_linear().weight.device
                with torch.no_grad():
                    image = torch.full((1, *target.image_shape), 0.5, device=device)
                    self._check_once(target, *pooled.with_logits(image))
        except TargetError as error:
            raise _without_features(self, str(error)) from error

    def identity_loss(self, problem: Problem) -> ImageLoss:
        objective = OBJECTIVES[self.objective]
        pooled = PooledEmbedding("target", problem.target)
        usual = self._usual_features(problem, pooled)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            features, logits = pooled.with_logits(images)
            away = (features - usual).square().mean(1)
            return objective(logits, labels) + self.feature_weight * away

        return loss

    @torch.no_grad()
    def _usual_features(self, problem: Problem, pooled: PooledEmbedding) -> Tensor:
        """Mean (D,) of the features of the pool's samples: as many queries."""
        total: Tensor | float = 0.0
        for w in problem.pool.latents.split(self.batch_size):
            features, logits = pooled.with_logits(problem.prior(w))
            self._check_once(problem.target, features, logits)
            total = total + features.double().sum(0)
        mean = torch.as_tensor(total) / len(problem.pool.latents)
        return mean.to(features.dtype)

    def _check_once(self, target: Target, features: Tensor, logits: Tensor) -> None:
        if len(features) != len(logits):
            reason = "its last torch.nn.Linear layer is called more than once for an image"
            raise _without_features(self, f"{target.spec}: {reason}")


def _without_features(attack: Lomma, reason: str) -> InputError:
    """``reason`` may go on with what to do about it elsewhere, after a semicolon."""
    return InputError(
        f"{type(attack).__name__} needs the target's penultimate features, but "
        f"{reason.partition(';')[0]}; choose another --attack"
    )
