"""Replacements are mixtures of other images of the class, whatever they replace."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from inversight.core.errors import StageError
from inversight.core.seeding import generator
from inversight.defences import Replacement
from inversight.defences.replacement import replaced
from tests.defences.problem import defend, equal, material, with_other_exposed_pixels


def test_replaced_pixels_change_nothing() -> None:
    given = material()
    made = defend(Replacement(), given)
    assert equal(made, defend(Replacement(), with_other_exposed_pixels(given)))
    assert made.facts["replaced"] == 6


def test_a_replacement_lies_between_two_others_of_its_class() -> None:
    given = material()
    private, made = given.private, replaced(given, rng=generator(0))
    assert torch.equal(made.images[~given.exposed], private.images[~given.exposed])
    assert torch.equal(made.labels, private.labels) and made.ids == private.ids
    for row in given.exposed.nonzero().squeeze(1).tolist():
        assert made.hashes[row] != private.hashes[row]
        rows = (~given.exposed & (private.labels == private.labels[row])).nonzero().squeeze(1)
        others = private.images[rows].double().flatten(1)
        x = made.images[row].double().flatten()
        errors = []
        for a in others:
            for b in others:
                share = ((x - b) @ (a - b) / (a - b).square().sum().clamp_min(1e-9)).clamp(0, 1)
                errors.append(float((share * a + (1 - share) * b - x).abs().max()))
        assert min(errors) < 1.0  # rounding to whole grey levels


def test_one_other_image_replaces_as_it_is() -> None:
    given = material()
    first = (given.private.labels == 0).nonzero().squeeze(1)
    exposed = torch.zeros_like(given.exposed)
    exposed[first[1:]] = True
    made = replaced(replace(given, exposed=exposed), rng=generator(0))
    assert all(torch.equal(made.images[i], given.private.images[first[0]]) for i in first)


def test_a_class_without_other_images_is_an_error() -> None:
    given = material()
    with pytest.raises(StageError, match="replacement: all images of class left"):
        defend(Replacement(), replace(given, exposed=given.private.labels == 0))
