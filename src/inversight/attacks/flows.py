"""Normalising flows of several classes at once, made of affine couplings by the library zuko."""

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
    """A flow for each of K classes: standard normal noise (K, S, D) to points of that shape.

    ``couplings`` of them in turn, each of which shifts and scales every second coordinate by what a
    network with two hidden layers of ``hidden`` units makes of the others (Dinh et al. 2017, eq. 7).
    """

    couplings: int
    hidden: int

    def start(self, classes: int, width: int) -> list[Tensor]:
        """Variables, each (K, ...), of flows that change nothing.

        Hidden layers begin at the same random values for each class, whichever others there are.
        """
        one = _couplings(self.couplings, self.hidden, 1, width)
        return [p.detach().expand(classes, *p.shape[1:]).clone() for p in one.parameters()]

    def points(self, variables: Sequence[Tensor], noise: Tensor) -> Tensor:
        """Points (K, S, D) of the noise."""
        return self._moved(variables, noise)[0]

    def divergence(self, variables: Sequence[Tensor], noise: Tensor) -> Tensor:
        """KL(q || N(0, I)) of each class, (K,), as the mean over its noise: unbiased, so it may be < 0.

        By the change of variables log q(x) = log N(noise) - log |det dx / d noise|.
        """
        points, log_volume = self._moved(variables, noise)
        return (0.5 * (points.square() - noise.square()).sum(2) - log_volume).mean(1)

    def _moved(self, variables: Sequence[Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
        """Points (K, S, D) and the logarithms of the Jacobian's determinants (K, S)."""
        classes, _, width = noise.shape
        module = _couplings(self.couplings, self.hidden, classes, width)
        names = [name for name, _ in module.named_parameters()]
        given = dict(zip(names, variables, strict=True))
        # zuko has stacked networks on the last axis but one.
        points, log_volume = torch.func.functional_call(module, given, noise.transpose(0, 1))
        return points.transpose(0, 1), log_volume.transpose(0, 1)


class _Couplings(nn.Module):
    """zuko's couplings as one call, so that their parameters can be given with it."""

    def __init__(self, couplings: int, hidden: int, classes: int, width: int) -> None:
        super().__init__()
        made = import_zuko().flows.RealNVP(
            width, transforms=couplings, hidden_features=(hidden, hidden), stack=classes
        )
        self.transform = made.transform
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
    """The zuko package.

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
