"""Inputs and results of defences, and the template of those that train the model again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from inversight.core.errors import InputError, StageError
from inversight.core.progress import Progress, silent
from inversight.data import ImageSet
from inversight.models.networks import SavedClassifier
from inversight.models.target import Target, target_of
from inversight.models.training import PLAIN, Variation, train_classifier
from inversight.settings import Training

Level = Literal["sample", "model", "output"]
Facts = Mapping[str, float | int | str]


@dataclass(frozen=True)
class DefenceData:
    """The data that a defence may use.

    private: the target's training images, labels in the order of the target's classes. protected:
    (N,) bool, the private images that a defence at sample level protects. public: images of the
    same kind that are not private; their labels have no meaning here. image_shape: (C, S, S), the
    defended network's input. training: recipe and budget of the undefended model.

    Raises:
        InputError: ``protected`` is not one truth value for each private image.
    """

    private: ImageSet
    protected: Tensor
    public: ImageSet
    image_shape: tuple[int, int, int]
    training: Training

    def __post_init__(self) -> None:
        if self.protected.dtype != torch.bool or self.protected.shape != (len(self.private),):
            raise InputError(
                f"protected: expected {len(self.private)} truth values, one for each private image, "
                f"found {self.protected.dtype} of shape {tuple(self.protected.shape)}"
            )

    def check_classes_left(self, name: str) -> None:
        """Check that each class has an image that is not protected; ``name`` is the defence's.

        Raises:
            StageError: naming the first class that has none.
        """
        for label in self.private.labels.unique().tolist():
            if bool(self.protected[self.private.labels == label].all()):
                raise StageError(
                    f"{name}: all images of class {self.private.classes[label]} are to be protected, "
                    "so none is left to train the class on; protect fewer, add images, or choose a "
                    "defence of the whole model"
                )


@dataclass(frozen=True)
class Defended:
    """A defended model.

    target: the model as a target. classifier: the part of it that can be saved, None if nothing
    can. facts: a few values that JSON can hold, such as the epsilon spent or the images removed.
    """

    target: Target
    classifier: SavedClassifier | None
    facts: Facts


@runtime_checkable
class Defence(Protocol):
    """Turns private images and an undefended target into a defended target."""

    @property
    def level(self) -> Level:
        """What the defence changes: training of single images, the model, or its outputs."""

    def fit(
        self, data: DefenceData, undefended: Target, *, rng: torch.Generator,
        progress: Progress = silent, device: torch.device | str = "cpu",
    ) -> Defended:  # fmt: skip
        """Return the defended target, with the access that ``undefended`` gives."""


@runtime_checkable
class NetworkChecked(Protocol):
    """A defence that can train certain networks only, or changes them."""

    def check_network(self, module: nn.Module) -> str | None:
        """Return in words what it replaces in a network like ``module``, None for nothing.

        Called before anything is trained.

        Raises:
            InputError: it cannot train such a network.
        """


@dataclass(frozen=True)
class TrainingPlan:
    """How the training of a defended model differs from the undefended one.

    variation: changes to the training. images: the training set; None: all private images.
    training: the recipe; None: the undefended model's. facts: what to report of the defence.
    final_facts: returns the facts that are known only after the training. progress: reporter of the
    training; None: the one that ``fit`` was given.
    """

    variation: Variation = PLAIN
    images: ImageSet | None = None
    training: Training | None = None
    facts: Facts = field(default_factory=dict)
    final_facts: Callable[[], Facts] = dict
    progress: Progress | None = None


@dataclass(frozen=True)
class FitContext:
    """The generator, progress reporter and device that ``fit`` was given."""

    rng: torch.Generator
    progress: Progress
    device: torch.device | str


class TrainingDefence(ABC):
    """Template of a defence that trains the model again; a subclass writes :meth:`plan`.

    ``name`` is the defence's name in messages and in the defended target's spec.
    """

    name: ClassVar[str]
    level: ClassVar[Level] = "model"

    @abstractmethod
    def plan(self, data: DefenceData, context: FitContext) -> TrainingPlan:
        """Return how to train the defended model.

        Raises:
            InputError: the defence does not fit the data or the recipe.
            StageError: a class would be left without training images.
        """

    def fit(
        self, data: DefenceData, undefended: Target, *, rng: torch.Generator,
        progress: Progress = silent, device: torch.device | str = "cpu",
    ) -> Defended:  # fmt: skip
        """Train the defended model; its target has the access that ``undefended`` gives.

        Raises:
            InputError: the defence does not fit the data or the recipe.
            StageError: the training failed.
        """
        plan = self.plan(data, FitContext(rng, progress, device))
        trained = train_classifier(
            data.private if plan.images is None else plan.images,
            training=plan.training or data.training, image_shape=data.image_shape, rng=rng,
            progress=plan.progress or progress, device=device, variation=plan.variation,
        )  # fmt: skip
        target = target_of(trained.classifier, f"{undefended.spec}, {self.name}")
        target = target.restricted(undefended.access).to(device)
        facts = {**plan.facts, "epochs": trained.epochs, **plan.final_facts()}
        return Defended(target, trained.classifier, facts)
