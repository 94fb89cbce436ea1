"""What is measured of a prior while it is trained: its samples' Frechet distance from public images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from inversight.core.config import nearest
from inversight.core.errors import ConfigError
from inversight.core.imaging import to_float
from inversight.embeddings import Embedding, named_embedding
from inversight.models.networks import SavedClassifier
from inversight.scores import frechet_distance

WATCHED = ("public", "inception", "pixel", "none")
"""What ``--features`` takes where a prior is trained, beside package.module:Class."""


@dataclass(frozen=True)
class FrechetToPublic:
    """Images (B, C, S, S) in [0, 1], so many at a time -> Frechet distance from the public images.

    ``public`` is uint8 (N, C, S, S); at most ``most`` of them, spread evenly, are looked at. Values
    compare with those of the same number of images only. NaN if a feature is not a number.
    """

    public: Tensor
    embedding: Embedding
    device: torch.device
    most: int = 2000

    def __call__(self, images: Iterator[Tensor]) -> float:
        found = self._features(images)
        if not bool(found.isfinite().all()):
            return math.nan
        value = frechet_distance(*(_unlabelled(f) for f in (self._public_features, found)))
        summary = value.summary["frechet"].value
        return math.nan if summary is None else summary

    @cached_property
    def _public_features(self) -> Tensor:
        count = min(len(self.public), self.most)
        chosen = self.public[torch.linspace(0, len(self.public) - 1, count).round().long()]
        return self._features(to_float(part).to(self.device) for part in chosen.split(64))

    @torch.no_grad()
    def _features(self, images: Iterator[Tensor]) -> Tensor:
        rows = [torch.cat([b.flatten(1) for b in self.embedding(x)], dim=1).cpu() for x in images]
        return torch.cat(rows).float()


def watched_features(
    name: str, *, size: int, public_network: SavedClassifier | None
) -> Embedding | None:
    """The embedding that a prior in training is watched with; None for ``none``.

    ``size`` is the images'; pixels are compared at 64 at most, or there would be too many.

    Raises:
        ConfigError: a name that there is not, or a distance whose features are too wide to have a
            covariance.
        WeightsError: published weights are missing.
    """
    check_watched(name)
    if name == "none":
        return None
    return named_embedding(
        name,
        use="features",
        role="--features",
        size=min(size, 64),
        public_network=public_network,
        evaluator=None,
    )


def check_watched(name: str) -> None:
    """Refuse a name that :func:`watched_features` does not know.

    Raises:
        ConfigError: with the values that there are.
    """
    if name not in WATCHED and ":" not in name:
        raise ConfigError(
            f"--features {name}: expected one of {', '.join(WATCHED)} or package.module:Class"
            f"{nearest(name, WATCHED)}"
        )


def _unlabelled(features: Tensor) -> tuple[Tensor, Tensor]:
    return features, torch.zeros(len(features), dtype=torch.int64)
