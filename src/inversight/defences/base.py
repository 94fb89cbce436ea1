"""What a defence is given and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.data import ImageSet
from inversight.models.networks import SavedClassifier
from inversight.models.target import Target
from inversight.settings import Training

Level = Literal["sample", "model", "output"]


@dataclass(frozen=True)
class Material:
    """What a defence may use.

    private: the target's training images, labels in the order of the target's classes. exposed:
    (N,) bool, the private rows to protect at sample level. public: images of the same kind that are
    not private; their labels mean nothing here. image_shape: (C, S, S), the defended network's
    input. training: recipe and budget of the undefended model.

    Raises:
        InputError: ``exposed`` is not one truth value for each private image.
    """

    private: ImageSet
    exposed: Tensor
    public: ImageSet
    image_shape: tuple[int, int, int]
    training: Training

    def __post_init__(self) -> None:
        if self.exposed.dtype != torch.bool or self.exposed.shape != (len(self.private),):
            raise InputError(
                f"exposed: expected {len(self.private)} truth values, one for each private image, "
                f"found {self.exposed.dtype} of shape {tuple(self.exposed.shape)}"
            )


@dataclass(frozen=True)
class Defended:
    """A defended model.

    target: again a target. classifier: what can be saved of it, None if it cannot be saved. facts:
    small and fit for JSON, such as the epsilon that was spent or how many images were removed.
    """

    target: Target
    classifier: SavedClassifier | None
    facts: Mapping[str, float | int | str]


@runtime_checkable
class Defence(Protocol):
    """Private images and an undefended target -> a defended target."""

    @property
    def level(self) -> Level:
        """What it changes: how single images are trained on, the model, or its answers."""

    def fit(
        self,
        material: Material,
        undefended: Target,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
        device: torch.device | str = "cpu",
    ) -> Defended: ...
