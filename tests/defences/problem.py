"""A small problem that a small network learns in a second."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from inversight.core.config import build
from inversight.core.seeding import generator
from inversight.data import ImageSet, image_set
from inversight.defences import Defence, DefenceData, Defended
from inversight.models.networks import Classifier, NetworkOptions, SavedClassifier, build_classifier
from inversight.models.target import Target, accuracy_on, target_of
from inversight.models.training import train_classifier
from inversight.settings import DEFENCES, Training

QUICK = Training(width=4, epochs=8, batch_size=8, warmup_epochs=1, flip=False, rotation=0.0)
SHORT = replace(QUICK, epochs=2)
LONGER = replace(QUICK, epochs=15, learning_rate=0.02)
CLASSES = ("left", "right", "middle")


def images(seed: int, per_class: int = 12, size: int = 8) -> ImageSet:
    """Bright on the left, on the right or in the middle, rows in random order."""
    rng = generator(seed)
    n, third = 3 * per_class, size // 3
    pixels = 0.2 * torch.rand(n, 1, size, size, generator=rng)
    for label, start in enumerate((0, size - third, third)):
        pixels[label * per_class : (label + 1) * per_class, :, :, start : start + third] += 0.7
    order = torch.randperm(n, generator=rng)
    labels = [CLASSES[row // per_class] for row in order.tolist()]
    ids = [f"{seed}-{i:03d}" for i in range(n)]
    return image_set((pixels * 255).to(torch.uint8)[order], labels, ids, CLASSES)


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
    """The same data but for the pixels of the protected images, which are inverted."""
    pixels = given.private.images.clone()
    pixels[given.protected] = 255 - pixels[given.protected]
    return replace(given, private=replace(given.private, images=pixels))


@cache
def undefended(size: int) -> Target:
    """A target without defence, for images of ``size``."""
    return target_of(trained(training_data(size), seed=0), "undefended")


def trained(given: DefenceData, seed: int = 3) -> SavedClassifier:
    """The undefended training on the private images, from the same seed as :func:`defend`."""
    return train_classifier(
        given.private, training=given.training, image_shape=given.image_shape, rng=generator(seed)
    ).classifier


def defend(defence: Defence, given: DefenceData | None = None, seed: int = 3) -> Defended:
    given = given or training_data()
    return defence.fit(given, undefended(given.image_shape[1]), rng=generator(seed))


def equal(*modules: nn.Module) -> bool:
    """Whether two networks have the same weights and buffers."""
    one, other = (module.state_dict() for module in modules)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def same(*made: Defended) -> bool:
    return equal(*(one.target.module for one in made))


def maps_of(made: Defended, x: Tensor) -> tuple[Classifier, Tensor, list[Tensor]]:
    """The defended network, its normalised input and its stages' maps, in double precision."""
    module = made.target.module.double()
    x = (x.double() - made.target.mean[0]) / made.target.std[0]
    return module, x, module.stage_maps(x)


def accuracy(made: Defended) -> float:
    """Accuracy on new images of the three classes."""
    return accuracy_on(made.target, images(6, size=made.target.image_shape[1]))


def named(name: str, **values: Any) -> Defence:
    return build({"class": name, **values}, DEFENCES, role="--defence")
