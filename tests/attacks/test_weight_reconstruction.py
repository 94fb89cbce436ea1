"""Training images are read out of the weights of a tiny network, without a prior or a query."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from inversight.attacks import Reconstructions, WeightReconstruction, run_attack
from inversight.core.errors import InputError
from inversight.core.seeding import generator
from inversight.data import ImageSet, image_set
from tests.attacks.perceptrons import CLASSES, PIXELS, SHAPE, network, target_of, trained
from tests.attacks.toy import FlatPrior

ATTACK = WeightReconstruction(restarts=3, steps=300, rounds=2, searches=60, keep=6)


@cache
def found(rounds: int) -> Reconstructions:
    how = replace(ATTACK, rounds=rounds)
    labels = torch.arange(CLASSES)
    return run_attack(how, trained().target, FlatPrior(), labels, rng=generator(0))


def nearest(images: Tensor, labels: Tensor, result: Reconstructions) -> Tensor:
    """Return the mean squared error (N,) of each image's nearest reconstruction of its class."""
    gaps = images.flatten(1)[:, None] - result.images.double().flatten(1)[None]
    other = labels[:, None] != result.labels[None]
    return gaps.square().mean(2).masked_fill(other, torch.inf).min(1).values


@pytest.mark.parametrize(("rounds", "share"), [(0, 0.3), (2, 0.3)])
def test_training_images_are_found_and_others_are_not(rounds: int, share: float) -> None:
    given, result = trained(), found(rounds)
    assert result.queries == 0 and torch.equal(result.images, result.latents)
    private = nearest(given.images, given.labels, result)
    others = nearest(given.others, given.labels, result)
    assert float(private.mean()) < share * float(others.mean())


def test_no_wrong_image_is_called_certain_and_the_best_come_first() -> None:
    given, result = trained(), found(2)
    sure = result.images.double()[result.losses < 0.5]
    gaps = (sure[:, None] - given.images[None]).flatten(2).square().mean(2)
    assert bool((gaps.min(1).values < 1e-6).all())
    for label in range(CLASSES):
        losses = result.losses[result.labels == label]
        assert torch.equal(losses, losses.sort().values)


def test_results_of_a_class_do_not_depend_on_the_others_that_are_asked_for() -> None:
    alone = run_attack(ATTACK, trained().target, FlatPrior(), torch.tensor([1]), rng=generator(0))
    assert torch.equal(alone.images, found(2).images[found(2).labels == 1])


def private_of(images: Tensor, labels: Tensor) -> ImageSet:
    names = [str(label) for label in labels.tolist()]
    ids = [str(number) for number in range(len(images))]
    return image_set((255 * images).round().to(torch.uint8), names, ids, ("0", "1", "2"))


def test_the_owner_is_told_why_little_may_be_found() -> None:
    given = trained()
    assert WeightReconstruction().advice(given.target, private_of(given.images, given.labels)) == ()
    (other,) = WeightReconstruction().advice(given.target, private_of(given.others, given.labels))
    assert "far from a stationary point" in other and "span" not in other
    untrained = target_of(network((PIXELS, 4, CLASSES)), classes=CLASSES)
    many = torch.rand(40, *SHAPE, generator=generator(0))
    (text,) = WeightReconstruction().advice(untrained, private_of(many, torch.arange(40) % 3))
    assert "83 parameters are fewer than the numbers in 40 images of 16 pixels" in text
    assert "do not show the span" in text and "\n" not in text


def test_too_few_parameters_are_refused() -> None:
    target = target_of(network((PIXELS, 4, CLASSES)), classes=CLASSES)
    WeightReconstruction(images=5).check(target, FlatPrior())
    with pytest.raises(InputError, match=r"tiny has 83, and 6 images of 16 pixels are 96"):
        WeightReconstruction(images=6).check(target, FlatPrior())
