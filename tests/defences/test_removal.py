"""Removed images leave no trace."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from inversight.core.errors import StageError
from inversight.core.seeding import generator
from inversight.defences import Removal
from inversight.models.training import train_classifier
from tests.defences.problem import QUICK, defend, equal, training_data, with_other_protected_pixels


def test_removed_pixels_change_nothing() -> None:
    given = training_data()
    assert equal(defend(Removal(), given), defend(Removal(), with_other_protected_pixels(given)))
    assert defend(Removal(), given).facts["removed"] == 6


def test_other_pixels_do() -> None:
    given = training_data()
    kept = replace(given, protected=~given.protected)
    changed = replace(with_other_protected_pixels(kept), protected=given.protected)
    assert not equal(defend(Removal(), given), defend(Removal(), changed))


def test_nothing_to_remove_is_the_undefended_training() -> None:
    given = training_data(protected=0)
    plain = train_classifier(
        given.private, training=QUICK, image_shape=(1, 8, 8), rng=generator(3)
    ).classifier.module.state_dict()
    made = defend(Removal(), given).target.module.state_dict()
    assert all(torch.equal(made[k], plain[k]) for k in plain)


def test_a_class_without_images_left_is_an_error() -> None:
    given = training_data()
    with pytest.raises(StageError, match="removal: all images of class right"):
        defend(Removal(), replace(given, protected=given.private.labels == 1))
