"""What a prior is: a generator that turns latents into images."""

from __future__ import annotations

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
