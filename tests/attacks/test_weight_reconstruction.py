"""Training images are read out of the weights of a tiny network, without a prior or a query."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from inversight.attacks import Reconstructions, WeightReconstruction, run_attack
from inversight.core.errors import InputError
from inversight.core.seeding import generator
from inversight.data import ImageSet, image_set
from inversight.models.backbone import features_of
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


class DoublePrior(FlatPrior):
    """Draws float64, for networks of it."""

    def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
        return super().sample(n, rng=rng).double()


def test_features_of_training_images_are_found_in_the_head_of_a_frozen_backbone_and_drawn() -> None:
    given = trained(backbone=True)
    attack = replace(ATTACK, images=6, pool=50, inversion_steps=40, inversion_rate=0.1)
    labels = torch.arange(CLASSES)
    sent: list[int] = []
    target = replace(given.target, before=sent.append)
    result = run_attack(attack, target, DoublePrior(), labels, rng=generator(0))
    assert result.features is not None and result.features.shape == (len(result), PIXELS)
    assert not sent and result.queries == 0

    def gaps(images: Tensor) -> Tensor:
        """Return the mean squared error of the nearest features of the class of each image."""
        own = features_of(given.target, images).double()
        assert result.features is not None
        found = torch.cdist(own, result.features.double()).square() / PIXELS
        other = given.labels[:, None] != result.labels[None]
        return found.masked_fill(other, torch.inf).min(1).values

    private, others = gaps(given.images), gaps(given.others)
    assert float(private.mean()) < 0.3 * float(others.mean())
    sure = result.features.double()[result.losses < 0.5]
    near = torch.cdist(sure, features_of(given.target, given.images).double()).min(1).values
    assert bool((near.square() / PIXELS < 1e-6).all())
    # The images are the prior's, and their features nearer to those found than those of a pool alone.
    torch.testing.assert_close(DoublePrior()(result.latents), result.images)
    start = run_attack(
        replace(attack, inversion_steps=0), target, DoublePrior(), labels, rng=generator(0)
    )
    drawn, pool = (
        (features_of(given.target, one.images) - result.features).square().sum()
        for one in (result, start)
    )
    assert float(drawn) < float(pool)
    with pytest.raises(InputError, match="features have no total variation"):
        replace(ATTACK, variation=0.1).check(given.target, DoublePrior())
    single = replace(given.target, module=deepcopy(given.target.module).float())
    private_images = private_of(given.others, given.labels)
    (warning,) = WeightReconstruction(images=6).advice(single, private_images)
    assert "far from a stationary point" in warning and "span" not in warning


def test_too_few_parameters_are_refused() -> None:
    target = target_of(network((PIXELS, 4, CLASSES)), classes=CLASSES)
    WeightReconstruction(images=5).check(target, FlatPrior())
    with pytest.raises(
        InputError, match=r"those of tiny have 83, and 6 images of 16 pixels are 96"
    ):
        WeightReconstruction(images=6).check(target, FlatPrior())
