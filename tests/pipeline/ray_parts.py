"""Parts that workers of a Ray cluster load. They import nothing that only tests need."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from inversight.core.errors import StageError
from inversight.core.progress import Progress, silent
from inversight.data import ImageSet
from inversight.embeddings.pixel import Pixel
from inversight.models.networks import SavedClassifier
from inversight.models.recipes import TrainingRecipe


@dataclass(frozen=True)
class KilledOnce(Pixel):
    """A distance whose first use in another process than ``alive`` kills that process."""

    marker: Path = Path()
    alive: int = 0

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        if os.getpid() != self.alive and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(images)


@dataclass(frozen=True)
class Failing(TrainingRecipe):
    """A training that fails as its users are told."""

    def fit_together(
        self, sets: Sequence[ImageSet], *, seeds: Sequence[int], device: torch.device,
        progress: Progress = silent,
    ) -> list[SavedClassifier]:  # fmt: skip
        raise StageError("there is no such layer")
