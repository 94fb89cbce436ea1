"""VMI (Wang et al., NeurIPS 2021): a variational distribution of latents for each class.

Threat model: white box. The attacker has the target's weights and a prior trained on public images.
The loss is E[-log p(class | image)] + weight KL(q || prior), with the expectation over latents of q, a
Gaussian with a full covariance or a normalising flow (section 4). Differences from the paper:

- The covariance has a triangular factor with logarithms on its diagonal (published: any square
  matrix). Its divergence is computed in closed form (published: estimated from samples, as for flows).
- Flows have affine couplings (published: Glow's, with additive couplings, and a flow for each layer
  of W).
- There the prior's latents are normal. Here they are measured in standard deviations, one coordinate
  at a time (:class:`Coordinates`), and treated as N(0, I).
- It ends with crops, as Plug & Play.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from inversight.attacks.distribution import DistributionSearch
from inversight.core.config import Fraction, settings
from inversight.core.errors import InputError


@settings
class Vmi(DistributionSearch):
    """VMI: distributions that the target classifies as the class and that stay near the prior."""

    family: Literal["gaussian", "flow"] = "gaussian"
    """The family of q (paper: both). flow needs zuko: pip install 'inversight[flows]'."""
    couplings: PositiveInt = 10
    """Couplings of a flow, each of which changes every second coordinate (published: 10 a level)."""
    hidden: PositiveInt = 64
    """Units in each of the two hidden layers of a flow's coupling."""
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

    @property
    def q(self) -> Gaussian | Flow:
        """The family of distributions, whose variables are optimised."""
        return Gaussian() if self.family == "gaussian" else Flow(self.couplings, self.hidden)

    def start(self, classes: int, width: int) -> list[Tensor]:
        return self.q.start(classes, width)

    def points(self, variables: Sequence[Tensor], noise: Tensor) -> Tensor:
        return self.q.points(variables, noise)

    def divergence(self, variables: Sequence[Tensor], noise: Tensor) -> Tensor:
        return self.divergence_weight * self.q.divergence(variables, noise)

    def optimiser(self, variables: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(variables, lr=self.learning_rate, momentum=self.momentum)


class Gaussian:
    """Gaussians with means (K, D) and factors (K, D, D), whose diagonals are stored as logarithms."""

    def start(self, classes: int, width: int) -> list[Tensor]:
        return [torch.zeros(classes, width), torch.zeros(classes, width, width)]

    def points(self, variables: Sequence[Tensor], noise: Tensor) -> Tensor:
        mean, packed = variables
        return mean[:, None] + noise @ _factor(packed).mT

    def divergence(self, variables: Sequence[Tensor], noise: Tensor) -> Tensor:
        """Return KL(N(m, L L^T) || N(0, I)) = (|L|^2 + |m|^2 - D) / 2 - sum of log diag L, (K,)."""
        mean, packed = variables
        square = _factor(packed).square().sum((1, 2)) + mean.square().sum(1) - mean.shape[1]
        log_diagonal = packed.diagonal(dim1=1, dim2=2).sum(1)
        return 0.5 * square - log_diagonal


def _factor(packed: Tensor) -> Tensor:
    """Return the lower triangular factor (K, D, D), with a positive diagonal."""
    return packed.tril(-1) + torch.diag_embed(packed.diagonal(dim1=1, dim2=2).exp())


@dataclass(frozen=True)
class Flow:
    """A flow for each of K classes, from standard normal noise (K, S, D) to points of that shape.

    Each of ``couplings`` couplings shifts and scales every second coordinate by the outputs of a network
    of the other ones, with two hidden layers of ``hidden`` units (Dinh et al. 2017, eq. 7).
    """

    couplings: int
    hidden: int

    def start(self, classes: int, width: int) -> list[Tensor]:
        """Return the variables, each (K, ...), of the identity.

        Hidden layers start from the same random values for every class.
        """
        one = _couplings(self.couplings, self.hidden, 1, width)
        return [p.detach().expand(classes, *p.shape[1:]).clone() for p in one.parameters()]

    def points(self, variables: Sequence[Tensor], noise: Tensor) -> Tensor:
        """Return the points (K, S, D) of the noise."""
        return self._moved(variables, noise)[0]

    def divergence(self, variables: Sequence[Tensor], noise: Tensor) -> Tensor:
        """Return KL(q || N(0, I)), (K,), as the mean over the noise: unbiased, so it can be negative.

        By the change of variables log q(x) = log N(noise) - log |det dx / d noise|.
        """
        points, log_volume = self._moved(variables, noise)
        return (0.5 * (points.square() - noise.square()).sum(2) - log_volume).mean(1)

    def _moved(self, variables: Sequence[Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return points (K, S, D) and the logarithms of the Jacobian's determinants (K, S)."""
        classes, _, width = noise.shape
        module = _couplings(self.couplings, self.hidden, classes, width)
        names = [name for name, _ in module.named_parameters()]
        given = dict(zip(names, variables, strict=True))
        # zuko stacks networks along the last axis but one.
        points, log_volume = torch.func.functional_call(module, given, noise.transpose(0, 1))
        return points.transpose(0, 1), log_volume.transpose(0, 1)


class _Couplings(nn.Module):
    """zuko's couplings as one module, so that it can be called with given parameters."""

    def __init__(self, couplings: int, hidden: int, classes: int, width: int) -> None:
        super().__init__()
        flow = import_zuko().flows.RealNVP(
            width, transforms=couplings, hidden_features=(hidden, hidden), stack=classes
        )
        self.transform = flow.transform
        for coupling in self.transform.transforms:
            for parameter in coupling.hyper[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        points, log_volume = self.transform().call_and_ladj(noise)
        return points, log_volume


@lru_cache(maxsize=4)
def _couplings(couplings: int, hidden: int, classes: int, width: int) -> _Couplings:
    if width < 2:
        raise InputError(
            "vmi: a flow needs latents of 2 coordinates or more, found 1; use family: gaussian"
        )
    with torch.random.fork_rng(devices=[]):  # zuko draws initial values from the global generator
        torch.manual_seed(0)
        return _Couplings(couplings, hidden, classes, width)


def import_zuko() -> Any:
    """Import the zuko package.

    Raises:
        InputError: it is not installed.
    """
    try:
        import zuko
    except ImportError:
        raise InputError(
            "vmi with family: flow needs zuko, which is not installed: "
            "pip install 'inversight[flows]'"
        ) from None
    return zuko
