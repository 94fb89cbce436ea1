"""Interfaces of a prior: a generator that maps latents to images, and what it can do besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Prior(Protocol):
    """A generator: latents (N, ...) -> images (N, C, H, W) in [0, 1]."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
        """Draw n latents, (n, ...), from the distribution of the generator's input."""

    def __call__(self, latents: Tensor) -> Tensor:
        """Return the images, differentiable in the latents; each depends on its own latent only."""


@runtime_checkable
class Truncatable(Protocol):
    """A prior that can trade variety for typicality."""

    def truncated(self, psi: float) -> Prior:
        """Return the prior with samples interpolated to the mean latent; psi in [0, 1], 1: unchanged."""


@runtime_checkable
class Critic(Protocol):
    """A prior that can judge how real an image looks."""

    def realness(self, images: Tensor) -> Tensor:
        """Return logits (N,) of images (N, C, H, W) in [0, 1], higher for images that look more real.

        Differentiable in the images; each logit depends on its own image only.
        """


@runtime_checkable
class Pivoted(Protocol):
    """A prior with latents of chosen images, which attacks can start from as well."""

    @property
    def pivots(self) -> Tensor | None:
        """(M, ...), each one latent for all layers; None: no pivots."""


@runtime_checkable
class Conditional(Protocol):
    """A prior that can draw samples of a class."""

    @property
    def num_classes(self) -> int:
        """Number of classes; 0: not conditional."""

    def sample_of(self, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """Draw a latent for each class in ``labels`` (n,) int64: (n, ...)."""


@dataclass(frozen=True)
class BlockFeatures:
    """State of the generator between two of its blocks.

    Attributes:
        block: number of blocks that are done, 1 or more.
        features: (N, ...), input of the next block.
        image: (N, C, h, w), sum of the image layers so far; None if there was none.
    """

    block: int
    features: Tensor
    image: Tensor | None


@runtime_checkable
class Intermediate(Protocol):
    """A prior whose generator can be stopped between its blocks and resumed from other features."""

    @property
    def blocks(self) -> int:
        """Number of blocks from latents to images."""

    def until(
        self, block: int, latents: Tensor, start: BlockFeatures | None = None
    ) -> BlockFeatures:
        """Run the generator to the end of ``block`` (1..blocks), from ``start`` or from the latents."""

    def finish(self, start: BlockFeatures, latents: Tensor) -> Tensor:
        """Run the blocks after ``start``.

        Returns:
            Images (N, C, H, W) in [0, 1], differentiable in the features and the latents.
        """
