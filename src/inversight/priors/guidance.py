"""Interfaces between the adversarial game and what guides its generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from inversight.core.processes import Processes


@dataclass(frozen=True)
class GeneratedBatch:
    """What the game knows about a batch of N generated images, besides the images.

    Attributes:
        classes: (N,) int64, the classes they were generated for; None for a generator without classes.
        rng: generator for random transformations of the images.
        class_logits: images (N, C, S, S) in [0, 1] -> the discriminator's class logits (N, K); None for
            a discriminator without them.
        augment: images (N, C, S, S) in [0, 1] -> the same as a discriminator's adaptive augmentation
            changes them, differentiably and possibly beyond [0, 1]; None: no augmentation.
    """

    classes: Tensor | None
    rng: torch.Generator
    class_logits: Callable[[Tensor], Tensor] | None
    augment: Callable[[Tensor], Tensor] | None = None


class SecondDiscriminator(Protocol):
    """A discriminator that guidance uses, and that the game trains and saves with its own."""

    @property
    def module(self) -> nn.Module:
        """The network that is trained."""

    @property
    def learning_rate(self) -> float:
        """Adam's step size."""

    def loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the mean loss of real and generated images, both (N, C, S, S) in [0, 1]."""

    def settle(self) -> None:
        """Update what has to be updated once after each step of training."""


class ImageGuidance(Protocol):
    """Gradients on generated images that are added to the GAN loss's.

    Attributes:
        state: saved and restored with the game.
        logged: values for the game's log.
        second: a discriminator for the game to train, or None.
    """

    state: dict[str, float]
    logged: dict[str, float]
    second: SecondDiscriminator | None

    def __call__(self, images: Tensor, batch: GeneratedBatch) -> dict[str, Tensor]:
        """Return gradients on images (N, C, S, S) in [0, 1], by the name of the term."""

    def due(self, step: int) -> bool:
        """Return whether the game has to call :meth:`measure` in this step."""

    def measure(self, gan: float, terms: Mapping[str, float]) -> None:
        """Record the norms, on the generator's parameters, of the GAN loss's gradient and each term's."""

    def factor(self, name: str) -> float:
        """Return the factor of a term's gradient; called after :meth:`measure` where that is due."""


def mean_state(states: Sequence[dict[str, float]], processes: Processes) -> dict[str, float]:
    """Return the mean of a guidance's state after each microbatch of all processes.

    Each microbatch starts from the same state. So the result does not depend on how microbatches are
    divided among processes. One microbatch's state is returned as it is.
    """
    if len(states) * processes.count == 1:
        return states[0]
    names = sorted(states[0])
    sums = [math.fsum(state[name] for state in states) for name in names]
    means = processes.means([total / len(states) for total in sums])
    return dict(zip(names, means, strict=True))
