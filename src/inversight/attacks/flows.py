"""Normalising flows of several classes at once: affine couplings of the library zuko."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from inversight.core.errors import InputError


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
