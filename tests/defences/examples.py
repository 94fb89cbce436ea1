"""Own defences that tests name by import path."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from inversight.defences import DefenceData, Defended, TrainingDefence, TrainingPlan
from inversight.models.target import Target
from tests.examples import SampleAttack


@dataclass(frozen=True)
class Twin(TrainingDefence):
    """The undefended training once more."""

    name = "twin"

    def plan(self, data: DefenceData, context: object) -> TrainingPlan:
        return TrainingPlan()


@dataclass(frozen=True)
class Other(Twin):
    """A wider network."""

    width: int = 4
    stop: ClassVar[bool] = False

    def plan(self, data: DefenceData, context: object) -> TrainingPlan:
        if self.stop:
            raise KeyboardInterrupt
        return TrainingPlan(training=replace(data.training, width=self.width))


@dataclass(frozen=True)
class Broken(Twin):
    """Always fails."""

    def plan(self, data: DefenceData, context: object) -> TrainingPlan:
        raise ValueError("no such\nluck")


class _Shifted(torch.nn.Module):
    """Gives each class the logit of the one before."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(x)
        return logits.roll(1, dims=1)


class Answers:
    """Answers with another class; nothing can be saved."""

    level = "output"

    def fit(self, data: DefenceData, undefended: Target, **_: Any) -> Defended:
        return Defended(replace(undefended, module=_Shifted(undefended.module)), None, {})


class MoreSamples(SampleAttack):
    """The same attack under another name."""
