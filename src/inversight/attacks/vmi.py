"""VMI (Wang et al., NeurIPS 2021): a variational Gaussian of latents for each class.

Threat model: white box. The attacker has the target's weights and a prior trained on public images.
What is descended is E[-log p(class | image)] + weight KL(q || prior), the expectation over latents of
q, a Gaussian with a full covariance (section 4). What differs from the paper, and why:

- q is the paper's Gaussian. Its flows, and a distribution for each layer of W, are not built.
- The covariance is that of a triangular factor with logarithms on its diagonal (published: any square
  matrix), and the divergence is computed (published: estimated from samples).
- The prior's latents are normal there. Here they are measured in standard deviations, one coordinate
  at a time (:class:`Coordinates`), and taken for N(0, I).
- It ends with crops, as Plug & Play.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.distribution import DistributionSearch
from inversight.config import Fraction, settings


@settings
class Vmi(DistributionSearch):
    """VMI: the Gaussian that is sure of the class and stays near the prior."""

    divergence_weight: NonNegativeFloat = 1e-3
    """Weight of KL(q || prior) (published: 1e-3)."""
    samples: PositiveInt = 64
    """Samples of a class's distribution in each step (published: 64)."""
    steps: PositiveInt = 4867
    """Steps of each class (published: 31 rounds of 10,000 samples, 4,867)."""
    learning_rate: PositiveFloat = 1e-4
    """Step size (published: 1e-4)."""
    momentum: Fraction = 0.9
    """Momentum (published: 0.9)."""

    def start(self, classes: int, width: int) -> list[Tensor]:
        """Means (K, D) and factors (K, D, D), the logarithms of their diagonals in their places: N(0, I)."""
        return [torch.zeros(classes, width), torch.zeros(classes, width, width)]

    def points(self, variables: Sequence[Tensor], noise: Tensor) -> Tensor:
        mean, packed = variables
        return mean[:, None] + noise @ _factor(packed).mT

    def optimiser(self, variables: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(variables, lr=self.learning_rate, momentum=self.momentum)

    def divergence(self, variables: Sequence[Tensor]) -> Tensor:
        """KL(N(m, L L^T) || N(0, I)) = (|L|^2 + |m|^2 - D) / 2 - sum of log diag L, weighted, (K,)."""
        mean, packed = variables
        square = _factor(packed).square().sum((1, 2)) + mean.square().sum(1) - mean.shape[1]
        log_diagonal = packed.diagonal(dim1=1, dim2=2).sum(1)
        return self.divergence_weight * (0.5 * square - log_diagonal)


def _factor(packed: Tensor) -> Tensor:
    """Lower triangular (K, D, D) with a positive diagonal."""
    return packed.tril(-1) + torch.diag_embed(packed.diagonal(dim1=1, dim2=2).exp())
