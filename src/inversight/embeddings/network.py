"""Embeddings of a trained classifier: ``public`` and ``evaluator``.

The stages of a public network give a distance of the form of LPIPS (:class:`StageEmbedding`); its
pooled penultimate layer gives the vectors for coverage and Frechet distances
(:class:`PooledEmbedding`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inversight.core.errors import TargetError
from inversight.core.imaging import fit, normalise
from inversight.embeddings.linearised import Map, staged_gram
from inversight.models.backbone import features_of
from inversight.models.networks import SavedClassifier
from inversight.models.target import Target

# Added to the squared norm: at a dead position (all channels zero) the square root's derivative
# stays finite, also the second one that the pullback metric needs.
_NORM_FLOOR = 1e-6


@dataclass(frozen=True)
class StageEmbedding:
    """Channel-normalised feature maps of every stage: LPIPS's form, on a network trained here.

    ``d(x, y)`` = mean over stages of the mean over positions of ``||f_l(x) - f_l(y)||^2`` with f_l
    of unit length over channels; in [0, 4], as LPIPS with equal weights (Zhang et al. 2018, eq. 1).
    """

    name: str
    network: SavedClassifier

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.network.module.stage_maps(self._normalised(images))
        blocks = []
        for f in maps:
            unit = f * (f.square().sum(1, keepdim=True) + _NORM_FLOOR).rsqrt()
            blocks.append(unit.flatten(1) / _root(f, len(maps)))
        return tuple(blocks)

    def gram(self, images: Tensor, dtype: torch.dtype) -> Map:
        """Return v -> J^T J v at ``images``, all (N, C, H, W), J the Jacobian of this embedding.

        Products run in ``dtype``; J itself is exact. The network must be in evaluation mode.
        """
        module = self.network.module
        first, *others = module.stages

        def measure(stage: int, f: Tensor) -> tuple[Tensor, Tensor]:
            length = (f.square().sum(1, keepdim=True) + _NORM_FLOOR).sqrt()
            return length, torch.full_like(f[:1, :, :1, :1], 1.0 / _root(f, len(module.stages)))

        stages = [[module.stem, first], *([stage] for stage in others)]
        return staged_gram(self._normalised, images, stages, measure, dtype)

    def _normalised(self, images: Tensor) -> Tensor:
        channels, size, _ = self.network.image_shape
        x = fit(images, size=size, channels=channels)
        return normalise(x, self.network.mean, self.network.std)


def _root(f: Tensor, stages: int) -> float:
    """Return the divisor that makes the squared sum over positions of f and stages a mean."""
    return math.sqrt(f.shape[2] * f.shape[3] * stages)


@dataclass(frozen=True)
class PooledEmbedding:
    """The input of a classifier's last linear layer, (N, D): the penultimate features.

    Works for any network that ends in ``torch.nn.Linear``.
    """

    name: str
    network: Target

    def __post_init__(self) -> None:
        self.last_linear()

    def last_linear(self) -> nn.Linear:
        """Return the layer whose inputs are the features.

        Raises:
            TargetError: the network has no torch.nn.Linear.
        """
        layers = [m for m in self.network.module.modules() if isinstance(m, nn.Linear)]
        if not layers:
            raise TargetError(
                f"{self.network.spec}: has no torch.nn.Linear layer, so its penultimate features "
                "cannot be found; use another value for --features or another --evaluator"
            )
        return layers[-1]

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        features, _ = self.with_logits(images)
        return (features,)

    def with_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (N, D) and logits (N, K) from one forward pass."""
        seen: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0])

        handle = self.last_linear().register_forward_pre_hook(keep)
        try:
            logits = self.network(images)
        finally:
            handle.remove()
        if not seen:
            raise TargetError(f"{self.network.spec}: its last linear layer is never called")
        return torch.cat([s.flatten(1) for s in seen]), logits


@dataclass(frozen=True)
class BackboneEmbedding:
    """The features (N, D) that a target's frozen backbone gives its head."""

    name: str
    network: Target

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return (features_of(self.network, images),)
