"""Defences that treat the protected images differently in training."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from inversight.core.errors import StageError
from inversight.core.seeding import generator
from inversight.defences import Augmentation, Defence, DownWeighting, Removal, Replacement
from inversight.defences.replacement import with_replacements
from inversight.models.training import recipe_loss
from tests.defences.problem import (
    LONGER,
    QUICK,
    SHORT,
    defend,
    equal,
    images,
    network,
    same,
    trained,
    training_data,
    with_other_protected_pixels,
)  # fmt: skip

GIVEN = training_data(training=SHORT)
CHOSEN = torch.arange(36) % 2 == 0
STRONG = Augmentation(magnitude=15).strong_change(CHOSEN)


@pytest.mark.parametrize("defence", [Removal(), Replacement()])
def test_protected_pixels_change_nothing(defence: Defence) -> None:
    made = defend(defence, GIVEN)
    assert same(made, defend(defence, with_other_protected_pixels(GIVEN)))
    assert made.facts.get("removed", made.facts.get("replaced")) == 6


@pytest.mark.parametrize("defence", [Removal(), Replacement()])
def test_rejects_a_class_without_unprotected_images(defence: Defence) -> None:
    with pytest.raises(StageError, match=r"re(moval|placement): all images of class right"):
        defend(defence, replace(GIVEN, protected=GIVEN.private.labels == 1))


def test_other_pixels_change_the_model() -> None:
    kept = replace(GIVEN, protected=~GIVEN.protected)
    changed = replace(with_other_protected_pixels(kept), protected=GIVEN.protected)
    assert not same(defend(Removal(), GIVEN), defend(Removal(), changed))


@pytest.mark.parametrize("defence", [Removal(), Augmentation()])
def test_without_protected_images_it_is_the_undefended_training(defence: Defence) -> None:
    given = training_data(training=SHORT, protected=0)
    assert equal(defend(defence, given).target.module, trained(given).module)


# Replacement


def test_a_replacement_lies_between_two_others_of_its_class() -> None:
    private, made = GIVEN.private, with_replacements(GIVEN, rng=generator(0))
    assert torch.equal(made.images[~GIVEN.protected], private.images[~GIVEN.protected])
    assert torch.equal(made.labels, private.labels) and made.ids == private.ids
    for row in GIVEN.protected.nonzero().squeeze(1).tolist():
        assert made.hashes[row] != private.hashes[row]
        others = private.images[~GIVEN.protected & (private.labels == private.labels[row])]
        x = made.images[row].double().flatten()
        errors = []
        for a, b in itertools.product(others.double().flatten(1), repeat=2):
            share = ((x - b) @ (a - b) / (a - b).square().sum().clamp_min(1e-9)).clamp(0, 1)
            errors.append(float((share * a + (1 - share) * b - x).abs().max()))
        assert min(errors) < 1.0  # rounding to whole grey levels


def test_a_single_other_image_replaces_unchanged() -> None:
    first = (GIVEN.private.labels == 0).nonzero().squeeze(1)
    protected = torch.zeros_like(GIVEN.protected)
    protected[first[1:]] = True
    made = with_replacements(replace(GIVEN, protected=protected), rng=generator(0))
    assert all(torch.equal(made.images[i], GIVEN.private.images[first[0]]) for i in first)


# Down-weighting


@pytest.mark.parametrize("loss", ["cross-entropy", "focal"])
def test_weight_0_is_removal_and_weights_add_up(loss: Literal["cross-entropy", "focal"]) -> None:
    recipe = replace(QUICK, loss=loss)
    module = network().double().eval()
    data = images(1)
    x, y = data.floats().double(), data.labels
    kept = torch.arange(len(x)) % 3 > 0

    def gradient(rows: Tensor, weights: Tensor | None) -> Tensor:
        found = recipe_loss(module(x[rows]), y[rows], recipe, weights)
        parts = torch.autograd.grad(found, list(module.parameters()))
        return torch.cat([p.flatten() for p in parts])

    everything = torch.ones_like(kept)
    share = float(kept.double().mean())
    zero = gradient(everything, kept.double())
    torch.testing.assert_close(zero, share * gradient(kept, None))
    half = gradient(everything, torch.where(kept, 1.0, 0.5).double())
    torch.testing.assert_close(half, 0.5 * (zero + gradient(everything, None)))


def test_weights_belong_to_their_images() -> None:
    """With weight 0 for two of three classes, in random order, only the third is ever predicted."""
    given = training_data(training=LONGER)
    given = replace(given, protected=given.private.labels != 1)
    for weight, answers in ((0.0, [1]), (1.0, [0, 1, 2])):
        target = defend(DownWeighting(weight=weight), given).target
        assert target(given.private.floats()).argmax(1).unique().tolist() == answers


def test_reports_the_default_weight() -> None:
    assert defend(DownWeighting(), GIVEN).facts == {"weighted": 6, "weight": 0.1, "epochs": 2}


# Augmentation


def test_changes_only_chosen_rows() -> None:
    rows = torch.tensor([3, 4, 5, 6, 8, 10])
    x, chosen = images(1).floats()[rows], CHOSEN[rows]
    y = STRONG(x, rows, generator(0))
    assert torch.equal(x, images(1).floats()[rows]) and torch.equal(y[~chosen], x[~chosen])
    assert (y[chosen] != x[chosen]).flatten(1).any(1).sum() >= 3
    assert y.min() >= 0.0 and y.max() <= 1.0


def test_colour_images_change_too() -> None:
    x = torch.rand(4, 3, 16, 16, generator=generator(0))
    y = STRONG(x, torch.arange(4), generator(0))
    assert y.shape == x.shape and torch.equal(y[1], x[1]) and not torch.equal(y, x)


def test_draws_come_from_the_given_generator() -> None:
    x, rows = images(1).floats(), torch.arange(36)
    state = torch.get_rng_state()
    one = STRONG(x, rows, generator(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)  # moves the global generator
    assert torch.equal(STRONG(x, rows, generator(1)), one)
    assert not torch.equal(STRONG(x, rows, generator(2)), one)


def test_augments_the_protected_images() -> None:
    made = defend(Augmentation(), GIVEN)
    assert made.facts["augmented"] == 6
    assert not same(made, defend(Augmentation(), with_other_protected_pixels(GIVEN)))
    assert not same(made, defend(Augmentation(), training_data(training=SHORT, protected=1)))
