"""LOMMA (Nguyen et al., CVPR 2023) on GMI's search: logit loss and model augmentation.

Threat model: white box, as GMI, and the target's penultimate features, which regularise the loss.
Surrogates are taught the target's soft answers; the identity loss is the mean over the target and
them, so that what one network alone is sure of pays less (section 4.2). Features are pulled to their
mean in the target only, as in the published code. What differs from the paper, and why:

- Samples of the prior stand for the public images that it was trained on, of which an attack here is
  given none: both where features are on average (paper: on 5,000 public images) and what surrogates
  are taught on.
- The surrogates are this package's small classifiers of two families, trained by its recipe; the
  paper's are EfficientNets B0, B1 and B2.
"""

from __future__ import annotations

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.gmi import Gmi, ImageLoss
from inversight.attacks.objectives import OBJECTIVES, ObjectiveName
from inversight.attacks.search import Problem
from inversight.attacks.selection import truncated
from inversight.attacks.surrogates import answered, distillation, taught
from inversight.core.config import settings
from inversight.core.errors import InputError, TargetError
from inversight.core.seeding import generator
from inversight.embeddings.network import PooledEmbedding
from inversight.models.target import Target
from inversight.priors.base import Prior
from inversight.settings import Training


@settings
class Lomma(Gmi):
    """LOMMA: GMI that raises the class's logit in several networks and keeps features ordinary."""

    objective: ObjectiveName = "logit"
    """The identity loss (paper: logit, eq. 3)."""
    feature_weight: NonNegativeFloat = 1.0
    """Weight of the features' mean squared distance to their mean (published code: 1)."""
    surrogates: NonNegativeInt = 3
    """Networks beside the target in the identity loss, all of one weight (paper: 3); 0 for none."""
    images: PositiveInt = 30_000
    """Samples of the prior that the target answers for surrogates to learn from, each a query
    (published: the public images of the GAN)."""
    temperature: PositiveFloat = 1.0
    """Temperature at which surrogates learn the target's answers (published code: 1)."""
    training: Training = Field(
        default_factory=lambda: Training(
            architecture="vgg", epochs=20, batch_size=64, most_steps=20_000, warmup_epochs=1,
            flip=False, shift=0.0, rotation=0.0,
        )
    )  # fmt: skip
    """How surrogates are trained (published code: 20 epochs of batches of 64, images as they are); every
    second one is of the other family of networks. Its own loss is not used."""

    @property
    def common(self) -> dict[str, int]:
        """Settings that are images sent for all classes together, and how often each is sent."""
        # The pool is classified, and then asked for its features.
        return {"pool": 2, "images": 1} if self.surrogates else {"pool": 2}

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
        surrogates = self._surrogates(problem)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            features, logits = pooled.with_logits(images)
            away = (features - usual).square().mean(1)
            all_logits = [logits, *(surrogate(images) for surrogate in surrogates)]
            identity = torch.stack([objective(one, labels) for one in all_logits]).mean(0)
            return identity + self.feature_weight * away

        return loss

    def _surrogates(self, problem: Problem) -> list[Target]:
        """Networks that answer as the target does: ``images`` queries, or none for no surrogates."""
        if not self.surrogates:
            return []
        rng = generator(problem.seed, "distillation")
        latents = truncated(problem.prior, self.truncation).sample(self.images, rng=rng)
        # Not by batch_size, which changes answers by rounding, and what is learnt from them by more.
        size = self.training.batch_size
        lesson = answered(problem.target, problem.prior, latents, batch_size=size)
        made = taught(
            lesson.images, count=self.surrogates, training=self.training, seed=problem.seed,
            variation=distillation(lesson.answers, self.temperature),
            image_shape=problem.prior.image_shape, device=latents.device,
        )  # fmt: skip
        return list(made)

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
