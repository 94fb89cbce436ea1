"""MID: a bottleneck that limits the information that predictions hold about the image.

Paper: Wang et al., "Improving Robustness to Model Inversion Attacks via Mutual Information
Regularization", AAAI 2021; the bound is the deep variational information bottleneck's (Alemi et al.,
ICLR 2017). A normal code z is drawn between penultimate features and logits; the loss is the recipe's
on z plus ``weight`` times KL(q(z | x) || N(0, I)), an upper bound on the information between image and
prediction.
Protects: lowers the information that predictions hold about the image, on average over images.
Does not protect: gives no guarantee and nothing for a single image; the layers before the code are not
limited, and an attacker with the weights can read those.
Costs: accuracy, growing with ``weight``; one small layer.
"""

from __future__ import annotations

from functools import partial

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from inversight.core.config import settings
from inversight.defences.base import DefenceData, FitContext, TrainingDefence, TrainingPlan
from inversight.models.networks import Classifier, NetworkOptions, stages_for
from inversight.models.training import Batch, Variation, recipe_loss
from inversight.settings import Training


@settings
class MID(TrainingDefence):
    """Limit the information about the image by a variational bottleneck (MID)."""

    name = "mid"

    weight: NonNegativeFloat = 0.01
    """Weight of the information term, in nats (published comparisons try 0.001 to 0.05)."""
    code: PositiveInt | None = None
    """Dimension of the code; by default half that of the penultimate features, as in published networks."""

    def plan(self, data: DefenceData, context: FitContext) -> TrainingPlan:
        """Train a network with a bottleneck."""
        features = data.training.width * 2 ** stages_for(data.image_shape[1])
        code = features // 2 if self.code is None else self.code
        loss, network = partial(self.loss, data.training), NetworkOptions(bottleneck=code)
        facts = {"weight": self.weight, "code": code}
        return TrainingPlan(variation=Variation(loss=loss, network=network), facts=facts)

    def loss(self, training: Training, module: Classifier, batch: Batch) -> Tensor:
        """Return the recipe's loss on a random code plus ``weight`` times its KL divergence from N(0, I)."""
        mean, std = module.distribution(module.stage_maps(batch.inputs)[-1])
        noise = torch.randn(mean.shape, generator=batch.rng).to(mean)
        logits = module.classifier(mean + std * noise)
        information = normal_divergence(mean, std).mean()
        return recipe_loss(logits, batch.labels, training) + self.weight * information


def normal_divergence(mean: Tensor, std: Tensor) -> Tensor:
    """Return KL(N(mean, std^2) || N(0, I)) of each row in nats, in [0, inf); (N, D) -> (N,)."""
    return 0.5 * (mean.square() + std.square() - 1.0 - 2.0 * std.log()).sum(1)
