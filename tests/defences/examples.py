"""Defences of a user's own, as import paths name them in tests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from inversight.core.progress import Progress, silent
from inversight.defences import DefenceData, Defended, Level
from inversight.models.target import Target, target_of
from inversight.models.training import train_classifier
from inversight.settings import Training
from tests.examples import SampleAttack


@dataclass(frozen=True)
class Twin:
    """The undefended training once more."""

    @property
    def level(self) -> Level:
        return "model"

    def fit(
        self,
        data: DefenceData,
        undefended: Target,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
        device: torch.device | str = "cpu",
    ) -> Defended:
        return self._trained(data, data.training, rng)

    def _trained(self, data: DefenceData, training: Training, rng: torch.Generator) -> Defended:
        saved = train_classifier(
            data.private, training=training, image_shape=data.image_shape, rng=rng
        ).classifier
        return Defended(target_of(saved, "own"), saved, {"width": training.width})


@dataclass(frozen=True)
class Other(Twin):
    """A wider network."""

    width: int = 4
    stop: ClassVar[bool] = False

    def fit(
        self,
        data: DefenceData,
        undefended: Target,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
        device: torch.device | str = "cpu",
    ) -> Defended:
        if self.stop:
            raise KeyboardInterrupt
        return self._trained(data, replace(data.training, width=self.width), rng)


@dataclass(frozen=True)
class Broken(Twin):
    """Never works."""

    def fit(
        self,
        data: DefenceData,
        undefended: Target,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
        device: torch.device | str = "cpu",
    ) -> Defended:
        raise ValueError("no such\nluck")


class _Shuffled(torch.nn.Module):
    """Logits of the next class in place of each."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(x)
        return logits.roll(1, dims=1)


@dataclass(frozen=True)
class Answers(Twin):
    """Answers with another class: nothing that could be saved."""

    @property
    def level(self) -> Level:
        return "output"

    def fit(
        self,
        data: DefenceData,
        undefended: Target,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
        device: torch.device | str = "cpu",
    ) -> Defended:
        return Defended(replace(undefended, module=_Shuffled(undefended.module)), None, {})


class MoreSamples(SampleAttack):
    """The same attack under another name."""
