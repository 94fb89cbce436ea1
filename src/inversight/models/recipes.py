"""Recipes: how a target was trained, as something that can be done again on other images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch

from inversight.core.errors import ConfigError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.models.function_recipe import FunctionRecipe
from inversight.models.loaders.timm import PREFIX as TIMM
from inversight.models.loaders.timm import network_config
from inversight.models.networks import SavedClassifier
from inversight.models.target import Target, target_of
from inversight.models.timm_recipe import TimmRecipe
from inversight.models.together import train_together
from inversight.settings import Training


@runtime_checkable
class Recipe(Protocol):
    """How a target was trained.

    description: a few words for the report, the same for the same recipe.
    """

    @property
    def description(self) -> str: ...

    def check(self, images: ImageSet, *, device: torch.device) -> tuple[str, ...]:
        """Try the recipe before a run; return warnings, one line each.

        Args:
            images: images like those that a model will be trained on, with all classes.
            device: where models will be trained.

        Raises:
            InputError: it cannot train a model, in one line.
        """

    def fit(
        self, images: ImageSet, *, seed: int, device: torch.device, progress: Progress = silent
    ) -> Target:
        """Return a model trained on all of ``images``; ``seed`` decides everything random.

        The target's classes are those of ``images``. It is on ``device``, in eval mode, and its
        parameters need no gradient.

        Raises:
            StageError: training failed, in one line.
        """


@dataclass(frozen=True)
class TrainingRecipe:
    """This package's own training, on every image and to the last epoch.

    image_shape: (C, S, S) of the network's input.
    """

    training: Training
    image_shape: tuple[int, int, int]

    @property
    def description(self) -> str:
        return f"the audit's own training of a {self.training.architecture}"

    def check(self, images: ImageSet, *, device: torch.device) -> tuple[str, ...]:
        """Return no warnings: no part of it is the user's."""
        return ()

    def fit(
        self, images: ImageSet, *, seed: int, device: torch.device, progress: Progress = silent
    ) -> Target:
        """Return a model trained on all of ``images``."""
        [one] = self.fit_together([images], seeds=[seed], device=device, progress=progress)
        return target_of(one, "trained by the recipe").to(device)

    def fit_together(
        self, sets: Sequence[ImageSet], *, seeds: Sequence[int], device: torch.device,
        progress: Progress = silent,
    ) -> list[SavedClassifier]:  # fmt: skip
        """Return a model for each of ``sets``, which have equally many images, trained at once."""
        return train_together(
            sets, training=replace(self.training, validation=0.0), image_shape=self.image_shape,
            rngs=[generator(seed) for seed in seeds], device=device, progress=progress,
        )  # fmt: skip


def load_recipe(
    spec: str | None, *, training: Training, image_shape: tuple[int, int, int],
    mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None,
) -> Recipe:  # fmt: skip
    """Return the recipe that ``spec`` names, after a check that it can be called.

    Args:
        spec: None: this package's own training. ``timm:NAME[?weights=FILE]``: that network, trained by
            the same loop. ``package.module:train``: a function of the owner's.
        training: settings of the loop.
        image_shape: (C, S, S) of the target's input.
        mean: of the normalisation of the target's input, where it is known.
        std: likewise.

    Raises:
        ConfigError: no such module, function or form of a spec, or a function with other arguments.
        TargetError: timm has no such network, or the weights do not exist.
    """
    if spec is None:
        return TrainingRecipe(training, image_shape)
    for option, values in (("--mean", mean), ("--std", std)):
        if values is not None and len(values) not in (1, image_shape[0]):
            raise ConfigError(
                f"--recipe {spec}: images have {image_shape[0]} channel(s), but {option} has "
                f"{len(values)} numbers"
            )
    if spec.startswith(TIMM):
        found = TimmRecipe(spec, training, image_shape, mean, std)
        network_config(found.model)
        _ = found.model.weights  # exists
        return found
    name, _, query = spec.partition("?")
    module, colon, function = name.partition(":")
    if not colon or module.startswith((".", "/")) or module.endswith(".py"):
        hint = f"; give {module.removesuffix('.py').replace('/', '.')}:{function or 'train'}"
        raise ConfigError(
            f"--recipe {spec}: expected package.module:train, or timm:NAME?weights=FILE"
            + (hint if module.endswith(".py") and not module.startswith((".", "/")) else "")
        )
    if query:
        raise ConfigError(
            f"--recipe {spec}: a function takes no ?{query}; let it read its files itself"
        )
    own = FunctionRecipe(spec, image_shape, mean or (0.0,), std or (1.0,))
    own.function()
    return own
