"""Multilayer perceptrons whose training images are known, and layers that are sums over images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.attacks.mlp import Mlp
from inversight.core.seeding import generator
from inversight.models.target import Target

SHAPE = (1, 4, 4)
PIXELS = 16
CLASSES = 3
DECAY = 2e-3


def network(sizes: tuple[int, ...], seed: int = 0) -> nn.Sequential:
    """Return a perceptron in float64 with layers of these sizes, initialised from the seed."""
    layers: list[nn.Module] = [nn.Flatten()]
    rng = generator(seed)
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs, dtype=torch.float64)
        nn.init.normal_(linear.weight, std=inputs**-0.5, generator=rng)
        nn.init.normal_(linear.bias, std=0.1, generator=rng)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def target_of(module: nn.Module, shape: tuple[int, int, int] = SHAPE, classes: int = 2) -> Target:
    """Return a target that normalises pixels to [-1, 1]."""
    names = tuple(map(str, range(classes)))
    return Target(module, names, shape, (0.5,), (0.5,), "tiny")


@dataclass(frozen=True)
class Trained:
    """A target that was trained on images (N, C, H, W), labels (N,); others are images of the same kind."""

    target: Target
    images: Tensor
    labels: Tensor
    others: Tensor


@cache
def trained(small: float = 1e-4, *, backbone: bool = False) -> Trained:
    """Return a target that was trained with weight decay until it stopped changing. Read only.

    small: of the first layer's initial weights, which take the longer to be erased the larger they are.
    backbone: the target is the head of a frozen backbone, one layer that mixes pixels.
    """
    levels = torch.randint(0, 256, (12, *SHAPE), generator=generator(1))
    images, others = (levels.double() / 255.0).split(6)
    labels = torch.arange(6) % CLASSES
    module = network((PIXELS, 200, CLASSES))
    frozen = (
        nn.Sequential(*network((PIXELS, PIXELS), seed=2), nn.Tanh()) if backbone else nn.Identity()
    )
    frozen.requires_grad_(False)
    with torch.no_grad():
        for one in module[1].parameters():
            one.mul_(small)
    steps = 2500
    sgd = torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, steps)
    for _ in range(steps):
        sgd.zero_grad()
        F.cross_entropy(module(frozen((images - 0.5) / 0.25)), labels).backward()
        sgd.step()
        schedule.step()
    whole = nn.Sequential(frozen, *module.requires_grad_(False)) if backbone else module
    target = replace(target_of(whole, classes=CLASSES), std=(0.25,))
    target = replace(target, frozen_until="0" if backbone else None)
    return Trained(target, images, labels, others)


@dataclass(frozen=True)
class Sum:
    """A perceptron of three classes whose first layer is the sum of signals (H, n) times images (n, D + 1)."""

    mlp: Mlp
    signals: Tensor
    images: Tensor
    labels: Tensor


def sum_of(images: int = 8, neurons: int = 200, pixels: int = 20) -> Sum:
    """Return a first layer as training makes it: half of the signals 0, a tenth between 0 and the margin's."""
    rng = generator(3)
    second = torch.randn(3, neurons, generator=rng, dtype=torch.float64)
    labels = torch.arange(images) % 3
    others = 1.0 + 0.5 * torch.rand(images, 3, generator=rng, dtype=torch.float64)
    others = others.masked_fill(F.one_hot(labels, 3).bool(), 0.0)
    margins = second[labels] - (others / others.sum(1, keepdim=True)) @ second
    chance = torch.rand(images, neurons, generator=rng, dtype=torch.float64)
    shares = torch.where(chance < 0.5, 0.0, torch.where(chance < 0.9, 1.0, 8.0 * (chance - 0.9)))
    rows = torch.rand(images, pixels, generator=rng, dtype=torch.float64)
    rows = torch.cat([rows, torch.ones(images, 1, dtype=torch.float64)], dim=1)
    signals = (margins * shares).T
    return Sum(perceptron(signals @ rows, second), signals, rows, labels)


def perceptron(first: Tensor, second: Tensor) -> Mlp:
    """Return a perceptron with a first layer (H, D + 1) and a second (K, H), on pixels as they are."""
    pixels = first.shape[1] - 1
    return Mlp(
        (first[:, :-1], second), (first[:, -1], None), torch.ones(pixels, dtype=torch.float64),
        torch.zeros(pixels, dtype=torch.float64),
    )  # fmt: skip
