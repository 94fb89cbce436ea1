"""Replacements are mixtures of other images of the class, whatever they replace."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from inversight.core.errors import StageError
from inversight.core.seeding import generator
from inversight.defences import Replacement
from inversight.defences.replacement import with_replacements
from tests.defences.problem import defend, equal, training_data, with_other_protected_pixels


def test_replaced_pixels_change_nothing() -> None:
    given = training_data()
    made = defend(Replacement(), given)
    assert equal(made, defend(Replacement(), with_other_protected_pixels(given)))
    assert made.facts["replaced"] == 6


def test_a_replacement_lies_between_two_others_of_its_class() -> None:
    given = training_data()
    private, made = given.private, with_replacements(given, rng=generator(0))
    assert torch.equal(made.images[~given.protected], private.images[~given.protected])
    assert torch.equal(made.labels, private.labels) and made.ids == private.ids
    for row in given.protected.nonzero().squeeze(1).tolist():
        assert made.hashes[row] != private.hashes[row]
        rows = (~given.protected & (private.labels == private.labels[row])).nonzero().squeeze(1)
        others = private.images[rows].double().flatten(1)
        x = made.images[row].double().flatten()
        errors = []
        for a in others:
            for b in others:
                share = ((x - b) @ (a - b) / (a - b).square().sum().clamp_min(1e-9)).clamp(0, 1)
                errors.append(float((share * a + (1 - share) * b - x).abs().max()))
        assert min(errors) < 1.0  # rounding to whole grey levels


def test_one_other_image_replaces_as_it_is() -> None:
    given = training_data()
    first = (given.private.labels == 0).nonzero().squeeze(1)
    protected = torch.zeros_like(given.protected)
    protected[first[1:]] = True
    made = with_replacements(replace(given, protected=protected), rng=generator(0))
    assert all(torch.equal(made.images[i], given.private.images[first[0]]) for i in first)


def test_a_class_without_other_images_is_an_error() -> None:
    given = training_data()
    with pytest.raises(StageError, match="replacement: all images of class left"):
        defend(Replacement(), replace(given, protected=given.private.labels == 0))
