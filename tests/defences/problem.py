"""A small problem that a small network learns in a second."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from inversight.core.config import build
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.defences import Defence, DefenceData, Defended
from inversight.models.networks import Classifier, NetworkOptions, build_classifier
from inversight.models.target import Target, target_of
from inversight.models.training import train_classifier
from inversight.settings import DEFENCES, Training

QUICK = Training(width=4, epochs=8, batch_size=8, warmup_epochs=1, flip=False, rotation=0.0)
SHORT = replace(QUICK, epochs=2)
LONGER = replace(QUICK, epochs=30, learning_rate=0.01)
CLASSES = ("left", "right", "middle")


def images(seed: int, per_class: int = 12, size: int = 8) -> ImageSet:
    """Bright on the left, on the right or in the middle, rows in random order."""
    rng = generator(seed)
    n = 3 * per_class
    pixels = 0.2 * torch.rand(n, 1, size, size, generator=rng)
    labels = torch.arange(3).repeat_interleave(per_class)
    third = size // 3
    for label, start in enumerate((0, size - third, third)):
        pixels[labels == label, :, :, start : start + third] += 0.7
    order = torch.randperm(n, generator=rng)
    return ImageSet(
        images=(pixels * 255).to(torch.uint8)[order],
        labels=labels[order],
        ids=tuple(f"{seed}-{i:03d}" for i in range(n)),
        classes=CLASSES,
        hashes=tuple(f"{seed}-{i}" for i in range(n)),
    )


def network(**options: Any) -> Classifier:
    """An untrained network with these options."""
    return build_classifier(
        "resnet", classes=CLASSES, image_shape=(1, 8, 8), width=4, mean=[0.4], std=[0.2],
        rng=generator(0), options=NetworkOptions(**options),
    ).module  # fmt: skip


def training_data(size: int = 8, training: Training = QUICK, protected: int = 2) -> DefenceData:
    """The first ``protected`` rows of each class are protected."""
    private = images(1, size=size)
    rows = torch.zeros(len(private), dtype=torch.bool)
    for label in range(3):
        rows[(private.labels == label).nonzero().squeeze(1)[:protected]] = True
    return DefenceData(private, rows, images(2, size=size), (1, size, size), training)


def with_other_protected_pixels(given: DefenceData) -> DefenceData:
    """The same material but for the pixels of the protected images."""
    pixels = given.private.images.clone()
    pixels[given.protected] = 255 - pixels[given.protected]
    return replace(given, private=replace(given.private, images=pixels))


def undefended(size: int = 8) -> Target:
    return _undefended(size)


@cache
def _undefended(size: int) -> Target:
    given = training_data(size)
    trained = train_classifier(
        given.private, training=QUICK, image_shape=given.image_shape, rng=generator(0)
    )
    return target_of(trained.classifier, "undefended")


def defend(defence: Defence, given: DefenceData | None = None, seed: int = 3) -> Defended:
    given = given or training_data()
    return defence.fit(given, undefended(given.image_shape[1]), rng=generator(seed))


def weights(made: Defended) -> dict[str, Tensor]:
    return dict(made.target.module.state_dict())


def equal(a: Defended, b: Defended) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def kinds(module: nn.Module) -> set[type[nn.Module]]:
    return {type(child) for child in module.modules()}


def named(name: str, **values: Any) -> Defence:
    made = build({"class": name, **values}, DEFENCES, role="--defence")
    assert isinstance(made, Defence)
    return made
