"""A toy problem with a known best reconstruction: two latents, three classes, each with a centre."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inversight.attacks.base_attack import Problem
from inversight.attacks.queries import QueryMeter
from inversight.core.config import build
from inversight.core.progress import silent
from inversight.core.seeding import generator
from inversight.models.target import Target
from inversight.priors import BlockFeatures, Prior
from inversight.settings import ATTACKS

CLASSES = {name: type(build(name, ATTACKS, role="attack")) for name in ATTACKS}
"""The attacks' classes by their names."""

SIZE = 8
LABELS = torch.tensor([0, 1, 2])
CENTRES = torch.tensor([[-1.5, 0.0], [1.5, 0.5], [0.0, -1.5]])


def halves(levels: Tensor) -> Tensor:
    """Images (N, 1, SIZE, SIZE) with the grey levels (N, 2) of the left and of the right half."""
    return levels.repeat_interleave(SIZE // 2, 1)[:, None, None].expand(-1, 1, SIZE, SIZE)


def levels(images: Tensor) -> Tensor:
    """Grey levels (N, 2) of the left and of the right half."""
    sides = images[..., : SIZE // 2], images[..., SIZE // 2 :]
    return torch.stack([side.mean((1, 2, 3)) for side in sides], dim=1)


@dataclass(frozen=True)
class FlatPrior:
    """Two latents: the grey level of the left and of the right half, through a sigmoid."""

    image_shape: tuple[int, int, int] = (1, SIZE, SIZE)
    scale: float = 1.0

    def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
        return self.scale * torch.randn(n, 2, generator=rng)

    def __call__(self, latents: Tensor) -> Tensor:
        return halves(torch.sigmoid(latents))


class GreyPrior(FlatPrior):
    """One latent, the grey level of the whole image through a sigmoid, and a critic without opinion."""

    def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
        return torch.randn(n, 1, generator=rng)

    def __call__(self, latents: Tensor) -> Tensor:
        return halves(torch.sigmoid(latents).expand(-1, 2))

    def realness(self, images: Tensor) -> Tensor:
        return images.sum((1, 2, 3)) * 0.0


class Nearest(nn.Module):
    """Logits: closeness of the halves' grey levels to each class's centre, and a constant for none."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.images += len(x)
        gaps = (levels(x)[:, None] - torch.sigmoid(CENTRES)[None]).square().sum(2)
        return torch.cat([8.0 * (-10.0 * gaps).exp(), torch.full((len(x), 1), 0.5)], dim=1)


class WithoutGradients(Nearest):
    """Refuses to be called where gradients are on: a service that answers and no more."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.requires_grad:
            raise AssertionError("asked for gradients")
        return super().forward(x)


class Answering(nn.Module):
    """A network that is a function of images."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = answer


def problem_of(target: Target, prior: Prior, labels: Tensor = LABELS, seed: int = 0) -> Problem:
    return Problem(target, prior, labels, seed, silent, QueryMeter(), batch_size=16)


def toy_target(module: nn.Module) -> Target:
    return Target(module, ("a", "b", "c", "none"), (1, SIZE, SIZE), (0.0,), (1.0,), "toy")


@torch.no_grad()
def least_on_a_grid(loss: Callable[[Tensor], Tensor], reach: float = 4.0) -> Tensor:
    """Grey levels (2,) of the least loss of images, for 161 x 161 latents within ``reach``.

    (K, 2) where ``loss`` returns K losses of each image, (N, K).
    """
    axis = torch.linspace(-reach, reach, 161)
    grid = torch.cartesian_prod(axis, axis)
    return torch.sigmoid(grid[loss(FlatPrior()(grid)).argmin(0)])


@torch.no_grad()
def shortfall(images: Tensor, labels: Tensor) -> Tensor:
    """How much less sure (M,) the network is of images' labels than of the best image of each class."""

    def sure(x: Tensor) -> Tensor:
        return Nearest()(x).softmax(1)[:, :3]

    best = least_on_a_grid(lambda x: -sure(x))
    own = sure(images)[range(len(labels)), labels]
    return sure(halves(best)).diagonal()[labels] - own


@dataclass(frozen=True)
class OpenPrior(FlatPrior):
    """The same with a critic, with the grey levels themselves between its two blocks, and with samples
    of each class that are drawn to its centre by a third."""

    blocks = 2
    num_classes = 4

    def sample_of(self, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        towards = torch.cat([CENTRES, torch.zeros(1, 2)])[labels] / 3.0
        return self.sample(len(labels), rng=rng) + towards

    def realness(self, images: Tensor) -> Tensor:
        """Higher for brighter images."""
        return images.mean((1, 2, 3))

    def until(
        self, block: int, latents: Tensor, start: BlockFeatures | None = None
    ) -> BlockFeatures:
        assert block == 1 and start is None
        return BlockFeatures(1, torch.sigmoid(latents), None)

    def finish(self, start: BlockFeatures, latents: Tensor) -> Tensor:
        return halves(start.features.clamp(0.0, 1.0))


class NearestByLayer(Nearest):
    """The same logits, or others of a class's ``height``, from a last linear layer, whose input is the
    closeness to each centre."""

    def __init__(self, height: float = 8.0) -> None:
        super().__init__()
        self.last = nn.Linear(3, 4)
        with torch.no_grad():
            self.last.weight.copy_(height * torch.eye(4, 3))
            self.last.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(super().forward(x)[:, :3] / 8.0)
        return logits


class Perceptron(nn.Module):
    """A multilayer perceptron with random weights, of four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0
        self.first, self.last = nn.Linear(SIZE**2, 8), nn.Linear(8, 4)
        for one in self.parameters():
            nn.init.normal_(one, generator=generator(len(one)))

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        logits: Tensor = self.last(self.first(x.flatten(1)).relu())
        return logits


class LinearPrior(FlatPrior):
    """Two latents: the grey level of the left and of the right half, straight in both."""

    def __call__(self, latents: Tensor) -> Tensor:
        return halves((0.5 + latents / 12.0).clamp(0.0, 1.0))


MIDDLES = torch.tensor([[-1.2, 0.2], [1.0, 0.9], [0.3, -1.0]])
RADII = torch.tensor([0.7, 0.6, 0.5])


class Discs(nn.Module):
    """A class is a disc in LinearPrior's latents, farthest from its border at its middle; none outside.

    Scores fall with the distance from the middle; what the labels tell is whether it is a radius.
    """

    def __init__(self) -> None:
        super().__init__()
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.requires_grad:
            raise AssertionError("asked for gradients")
        self.images += len(x)
        at = 12.0 * (levels(x) - 0.5)
        gaps = (at[:, None] - MIDDLES[None]).norm(dim=2) / RADII
        return torch.cat([4.0 * (1.0 - gaps), torch.zeros(len(x), 1)], dim=1)


def from_middle(latents: Tensor, labels: Tensor) -> Tensor:
    """Distance (M,) of latents from the middle of their class's disc, in its radii."""
    return (latents - MIDDLES[labels]).norm(dim=1) / RADII[labels]
