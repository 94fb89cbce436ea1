"""Parts of a user's own, as import paths name them in tests."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from inversight.attacks import Reconstructions
from inversight.core.errors import InputError
from inversight.core.imaging import to_uint8
from inversight.core.progress import Progress, silent
from inversight.embeddings.pixel import Pixel
from inversight.models.target import Access, Target
from inversight.priors import Prior


@dataclass(frozen=True)
class NoisePrior:
    """Latents are the images' logits."""

    size: int = 8
    scale: float = 1.0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (1, self.size, self.size)

    def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
        return self.scale * torch.randn(n, self.size**2, generator=rng)

    def __call__(self, latents: Tensor) -> Tensor:
        return torch.sigmoid(latents).view(-1, *self.image_shape)


@dataclass(frozen=True)
class SampleAttack:
    """Draws, and keeps the surest: no optimisation at all."""

    keep: int = 3

    @property
    def access(self) -> Access:
        return Access.SCORES

    @torch.no_grad()
    def run(
        self, target: Target, prior: Prior, labels: Tensor, *, rng: torch.Generator,
        progress: Progress = silent,
    ) -> Reconstructions:  # fmt: skip
        pool = prior.sample(50, rng=rng)
        confidence = target(prior(pool)).softmax(1)[:, labels]
        best = confidence.topk(self.keep, dim=0)
        index = best.indices.T.flatten()
        progress(1, 1)
        repeated = labels.repeat_interleave(self.keep)
        losses = 1 - best.values.T.flatten()
        return Reconstructions(prior(pool[index]), repeated, pool[index], losses)


@dataclass(frozen=True)
class DemandingAttack(SampleAttack):
    """Wants what no prior has."""

    def check(self, target: Target, prior: Prior) -> None:
        raise InputError("DemandingAttack needs a prior that sings; choose another --attack")


@dataclass(frozen=True)
class HalfMeans:
    """An embedding: mean of the upper and of the lower half."""

    name: str = "half-means"

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        halves = images.mean(1).flatten(1).view(len(images), 2, -1)
        return (halves.mean(2) / math.sqrt(2),)


class OwnNetwork(nn.Sequential):
    """A user's classifier of 8x8 grey images."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, classes)


def own_perceptron(weights: str) -> nn.Module:
    """A factory for ``--target tests.examples:own_perceptron?weights=FILE``, of two classes."""
    state = load_file(weights)
    neurons = len(state["1.bias"])
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, neurons), nn.ReLU(), nn.Linear(neurons, 2))
    network.load_state_dict(state)
    return network


def own_convolution() -> nn.Module:
    """Make a classifier of two classes without a linear layer."""
    return nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten())


def spectral_network() -> nn.Module:
    """Make a classifier of two classes with spectral normalisation."""
    network = OwnNetwork()
    network.linear.weight.data = torch.linspace(-1.0, 1.0, 128).view(2, 64)
    nn.utils.parametrizations.spectral_norm(network.linear)
    return network


def own_network(weights: str) -> OwnNetwork:
    """A factory for ``--target tests.examples:own_network?weights=FILE``."""
    state = load_file(weights)
    network = OwnNetwork(len(state["linear.bias"]))
    network.load_state_dict(state)
    return network


class CountingPixels:
    """Pixels at 8 x 8; ``times`` counts how often each image came, whichever instance it came to."""

    name = "counting-pixels"
    times: ClassVar[Counter[bytes]] = Counter()

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        for image in to_uint8(images):
            self.times[image.numpy().tobytes()] += 1
        return Pixel((8, 8))(images)
