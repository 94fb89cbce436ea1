"""Strong augmentation changes the chosen images only, from the given generator."""

from __future__ import annotations

import torch

from inversight.core.seeding import generator
from inversight.defences import Augmentation
from inversight.defences.augmentation import StrongAugmentation
from tests.defences.problem import defend, equal, images, training_data, with_other_protected_pixels

CHOSEN = torch.arange(36) % 2 == 0
STRONG = StrongAugmentation(CHOSEN, operations=2, magnitude=15, erase=0.5)


def test_only_chosen_rows_change() -> None:
    rows = torch.tensor([3, 4, 5, 6, 8, 10])
    x = images(1).floats()[rows]
    before = x.clone()
    y = STRONG(x, rows, generator(0))
    assert torch.equal(x, before)
    assert torch.equal(y[~CHOSEN[rows]], x[~CHOSEN[rows]])
    assert (y[CHOSEN[rows]] != x[CHOSEN[rows]]).flatten(1).any(1).sum() >= 3
    assert y.min() >= 0.0 and y.max() <= 1.0


def test_colour_images_too() -> None:
    x = torch.rand(4, 3, 16, 16, generator=generator(0))
    y = STRONG(x, torch.tensor([0, 1, 2, 3]), generator(0))
    assert y.shape == x.shape and torch.equal(y[1], x[1]) and not torch.equal(y, x)


def test_draws_come_from_the_generator_alone() -> None:
    x, rows = images(1).floats(), torch.arange(36)
    state = torch.get_rng_state()
    one = STRONG(x, rows, generator(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)  # moves the global generator
    assert torch.equal(STRONG(x, rows, generator(1)), one)
    assert not torch.equal(STRONG(x, rows, generator(2)), one)


def test_the_protected_images_are_the_augmented_ones() -> None:
    given = training_data()
    made = defend(Augmentation(), given)
    assert made.facts["augmented"] == 6
    assert not equal(made, defend(Augmentation(), with_other_protected_pixels(given)))
    assert not equal(made, defend(Augmentation(), training_data(protected=1)))


def test_without_protected_images_it_is_the_undefended_training() -> None:
    given = training_data(protected=0)
    assert equal(defend(Augmentation(), given), defend(Augmentation(magnitude=0), given))
