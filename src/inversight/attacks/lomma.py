"""LOMMA (Nguyen et al., CVPR 2023) on GMI's search: logit loss and model augmentation.

Threat model: white box, as GMI, and the target's penultimate features, which regularise the loss.
Surrogates learn the target's soft answers. The identity loss is the mean over the target and the
surrogates, so that images of which one network alone is confident count less (section 4.2). Features
are pulled to their mean in the target only, as in the published code. Differences from the paper:

- Samples of the prior replace the public images on which it was trained, which an attack here does not
  have: for the mean of the features (paper: over 5,000 public images), and to train the surrogates.
- The surrogates are this package's small classifiers of two families, trained by its recipe; the
  paper's are EfficientNets B0, B1 and B2.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.gmi import Gmi
from inversight.attacks.gradient_search import ImageLoss, LatentProblem
from inversight.attacks.objectives import ObjectiveName
from inversight.attacks.surrogates import distillation, label_images, train_surrogates
from inversight.attacks.workload import SurrogateWork, Workload
from inversight.core.config import settings
from inversight.core.errors import InputError, TargetError
from inversight.embeddings.network import PooledEmbedding
from inversight.models.target import Target
from inversight.priors.base import Prior
from inversight.settings import Training


@settings
class Lomma(Gmi):
    """LOMMA: GMI that raises the class's logit in several networks and keeps features near their mean."""

    objective: ObjectiveName = "logit"
    """The identity loss (paper: logit, eq. 3)."""
    feature_weight: NonNegativeFloat = 1.0
    """Weight of the features' mean squared distance to their mean (published configuration: 1; MIBench:
    0.1)."""
    surrogates: NonNegativeInt = 3
    """Networks besides the target in the identity loss, all with equal weight (paper: 3)."""
    images: PositiveInt = 30_000
    """Samples of the prior on which surrogates learn the target's answers, each a query (published: the
    public images of the GAN)."""
    temperature: PositiveFloat = 1.0
    """Temperature at which surrogates learn the target's answers (published code: 1)."""
    training: Training = Field(
        default_factory=lambda: Training(
            architecture="vgg", epochs=20, batch_size=64, most_steps=20_000, warmup_epochs=1,
            flip=False, shift=0.0, rotation=0.0,
        )
    )  # fmt: skip
    """How surrogates are trained (published code: 20 epochs of batches of 64, images as they are); the
    second, fourth, ... are of the other family of networks. The loss that it names is not used."""

    def workload(self, prior: Prior) -> Workload:
        work = super().workload(prior)
        shared = {"pool": 2 * self.pool}  # classified, and then sent for its features
        work = replace(work, shared=shared)
        if not self.surrogates:
            return work
        seen = replace(work, shared={}, forward=0, loss=None, generates=False)
        return replace(
            work,
            shared=shared | {"images": self.images},
            surrogates=SurrogateWork(self.surrogates, self.images, self.training, seen),
        )

    def check(self, target: Target, prior: Prior) -> None:
        super().check(target, prior)
        try:
            pooled = PooledEmbedding("target", target)
            if target.before is None:  # if queries are counted, the first batch shows it
                device = pooled.last_linear().weight.device
                with torch.no_grad():
                    image = torch.full((1, *target.image_shape), 0.5, device=device)
                    self._check_once(target, *pooled.with_logits(image))
        except TargetError as error:
            raise _without_features(self, str(error)) from error

    def identity_loss(self, problem: LatentProblem) -> ImageLoss:
        pooled = PooledEmbedding("target", problem.target)
        mean = self._mean_features(problem, pooled)
        surrogates = self._surrogates(problem)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            features, logits = pooled.with_logits(images)
            distance = (features - mean).square().mean(1)
            all_logits = [logits, *(surrogate(images) for surrogate in surrogates)]
            identity = torch.stack([self.loss(one, labels) for one in all_logits]).mean(0)
            return identity + self.feature_weight * distance

        return loss

    def _surrogates(self, problem: LatentProblem) -> list[Target]:
        """Return networks that learned the target's answers: ``images`` queries if there are any."""
        if not self.surrogates:
            return []
        latents = problem.sample(self.images, self.truncation, "distillation")
        # Not by batch_size: it changes answers by rounding, and training amplifies that.
        images, answers = label_images(problem, latents, batch_size=self.training.batch_size)
        surrogates = train_surrogates(
            problem, images, count=self.surrogates, training=self.training,
            variation=distillation(answers, self.temperature),
        )  # fmt: skip
        return list(surrogates)

    @torch.no_grad()
    def _mean_features(self, problem: LatentProblem, pooled: PooledEmbedding) -> Tensor:
        """Return the mean (D,) of the features of the pool's samples, each a query."""
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
    """Return the error; what follows a semicolon in ``reason`` is advice that does not apply here."""
    return InputError(
        f"{type(attack).__name__} needs the target's penultimate features, but "
        f"{reason.partition(';')[0]}; choose another --attack"
    )
