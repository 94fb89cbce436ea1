"""BiDO: feature maps that depend little on the image and much on its label.

Paper: Peng et al., "Bilateral Dependency Optimization: Defending Against Model-inversion Attacks", KDD
2022. The loss is the recipe's plus, summed over the stages' feature maps z, ``image_weight`` * d(x, z)
- ``label_weight`` * d(z, y), d being the Hilbert-Schmidt independence criterion on the step's batch,
with Gaussian kernels; here in the normalised form that the authors' code uses (Fukumizu et al. 2007).
Protects: lowers the information that feature maps hold about the image, on average over a batch.
Does not protect: gives no guarantee and nothing for a single image; a batch's criterion is a rough
estimate, the rougher the smaller the batch.
Costs: accuracy, growing with ``image_weight``; kernel matrices of each batch and two linear systems for
each map.
"""

from __future__ import annotations

from functools import partial

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from inversight.core.config import settings
from inversight.defences.base import DefenceData, FitContext, TrainingDefence, TrainingPlan
from inversight.models.networks import Classifier
from inversight.models.training import Batch, Variation, recipe_loss
from inversight.settings import Training

RIDGE = 1e-5
"""Regularisation of the normalised criterion for each image of the batch (authors' code: 1e-5)."""


@settings
class BiDO(TrainingDefence):
    """Make feature maps depend less on the image and more on the label (BiDO with HSIC)."""

    name = "bido"

    image_weight: NonNegativeFloat = 0.05
    """Weight of the dependency between image and feature maps (paper: 0.05 for CelebA)."""
    label_weight: NonNegativeFloat = 0.5
    """Weight of the dependency between feature maps and labels (paper: 0.5 for CelebA)."""
    bandwidth: PositiveFloat = 5.0
    """Bandwidth of the kernels, in units of the square root of the number of values (authors' code: 5)."""

    def plan(self, data: DefenceData, context: FitContext) -> TrainingPlan:
        """Train with the two dependencies in the loss."""
        facts = {"image_weight": self.image_weight, "label_weight": self.label_weight}
        variation = Variation(loss=partial(self.loss, data.training))
        return TrainingPlan(variation=variation, facts=facts)

    def loss(self, training: Training, module: Classifier, batch: Batch) -> Tensor:
        """Return the recipe's loss plus the two dependencies of each stage's feature map."""
        maps = module.stage_maps(batch.inputs)
        logits = module.classifier(module.pool(maps[-1]))
        loss = recipe_loss(logits, batch.labels, training)
        of_images = kernel_operator(batch.inputs.flatten(1), self.bandwidth)
        classes = F.one_hot(batch.labels, logits.shape[1]).to(logits.dtype)
        of_labels = kernel_operator(classes, self.bandwidth)
        for z in maps:
            of_map = kernel_operator(z.flatten(1), self.bandwidth)
            loss = loss + self.image_weight * dependency(of_images, of_map)
            loss = loss - self.label_weight * dependency(of_map, of_labels)
        return loss


def kernel_operator(x: Tensor, bandwidth: float) -> Tensor:
    """Return R = G (G + n RIDGE I)^-1, (n, n), of rows x (n, D) with centred Gaussian kernel matrix G.

    The kernel is exp(-|a - b|^2 / (2 bandwidth^2 D)). R is symmetric, its eigenvalues are in [0, 1).
    """
    n = len(x)
    squared = x.square().sum(1)
    distance = (squared[:, None] + squared[None, :] - 2.0 * x @ x.T).clamp_min(0.0)
    kernel = torch.exp(-distance / (2.0 * bandwidth**2 * x.shape[1]))
    centred = kernel - kernel.mean(0, keepdim=True) - kernel.mean(1, keepdim=True) + kernel.mean()
    ridge = n * RIDGE * torch.eye(n, dtype=x.dtype, device=x.device)
    operator: Tensor = torch.linalg.solve(centred + ridge, centred)
    return operator


def dependency(a: Tensor, b: Tensor) -> Tensor:
    """Return the normalised HSIC tr(A B) of two operators (n, n), a scalar in [0, n - 1); 0 if independent."""
    return (a * b.T).sum()
