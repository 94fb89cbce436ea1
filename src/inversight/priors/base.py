"""What a prior is: a generator that turns latents into images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Prior(Protocol):
    """Latents -> images. ``image_shape`` is (C, H, W); images are (N, C, H, W) in [0, 1]."""

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
        """n latents, (n, ...), from the distribution that images are drawn from."""

    def __call__(self, latents: Tensor) -> Tensor:
        """Images, differentiable in the latents; each depends on its own latent alone."""


@runtime_checkable
class Truncatable(Protocol):
    """A prior that can trade variety for typicality."""

    def truncated(self, psi: float) -> Prior:
        """The prior whose samples lie ``psi`` of the way from the mean latent, psi in [0, 1]."""


@runtime_checkable
class Critic(Protocol):
    """A prior that can tell how real an image looks."""

    def realness(self, images: Tensor) -> Tensor:
        """Logits (N,) of images (N, C, H, W) in [0, 1], higher for what looks more real.

        Differentiable in the images; each depends on its own image alone.
        """


@runtime_checkable
class Pivoted(Protocol):
    """A prior that knows latents of chosen images, from which an attack can begin as well."""

    @property
    def pivots(self) -> Tensor | None:
        """(M, ...), each a latent for all layers; None: there are none after all."""


@runtime_checkable
class Conditional(Protocol):
    """A prior that can be asked for samples of a class."""

    @property
    def num_classes(self) -> int:
        """How many classes there are; 0: this one has none after all."""

    def sample_of(self, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """A latent of each class in ``labels`` (n,) int64: (n, ...)."""


@dataclass(frozen=True)
class BlockFeatures:
    """Images in the making. block: how many of the generator's blocks are done, 1 or more.

    features (N, ...): what the next block starts from; image (N, C, h, w): what the blocks so far add
    to the image, None if nothing.
    """

    block: int
    features: Tensor
    image: Tensor | None


@runtime_checkable
class Intermediate(Protocol):
    """A prior whose generator can be stopped between its blocks and go on from changed features."""

    @property
    def blocks(self) -> int:
        """How many blocks there are from latents to images."""

    def until(
        self, block: int, latents: Tensor, start: BlockFeatures | None = None
    ) -> BlockFeatures:
        """Go on to the end of ``block`` (1..blocks), from ``start`` or else from the latents alone."""

    def finish(self, start: BlockFeatures, latents: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] from ``start``, differentiable in its features and latents."""
