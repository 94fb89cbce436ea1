"""Units of private images and holdout together: groups and near-duplicates."""

from __future__ import annotations

from dataclasses import replace

import torch

from inversight.core.errors import ConfigError
from inversight.data import ImageSet, image_set
from inversight.risk.units import unit_numbers, units_of
from tests.refusals import refused


def noise(seed: int, labels: str, prefix: str) -> ImageSet:
    """Return noise images of 16 x 16 with one class for each different letter."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (len(labels), 1, 16, 16), generator=rng).to(torch.uint8)
    ids = [f"{label}/{prefix}{i}" for i, label in enumerate(labels)]
    return image_set(pixels, list(labels), ids, ["a", "b"])


def sets() -> tuple[ImageSet, ImageSet]:
    """Private a/p1 and a/p2 are near-duplicates, and so are b/p4 and the holdout's b/h2."""
    private, holdout = noise(0, "aaabbb", "p"), noise(1, "aabb", "h")
    private.images[2] = private.images[1] // 2 + 20
    holdout.images[2] = private.images[4].roll(1, 2)
    return private, holdout


def test_near_duplicates_of_both_sets_are_units() -> None:
    private, holdout = sets()
    assert units_of(private, holdout).unit.tolist() == [0, 1, 1, 2, 3, 4, 5, 6, 3, 7]
    assert units_of(private).unit.tolist() == [0, 1, 1, 2, 3, 4]


def test_groups_are_units_that_twins_join() -> None:
    private, holdout = sets()
    private = replace(private, groups=("x", "x", None, None, None, None))
    holdout = replace(holdout, groups=("x", None, None, "y"))
    found = units_of(private, holdout)
    assert found.unit.tolist() == [0, 0, 0, 1, 2, 3, 0, 4, 2, 5]
    assert found.group.tolist() == [0, 0, -1, -1, -1, -1, 0, -1, -1, 1]
    assert not found.by_image


def test_where_each_class_is_one_person_only_twins_are_units() -> None:
    private, holdout = sets()
    private = replace(private, groups=("x",) * 3 + ("y",) * 3)
    holdout = replace(holdout, groups=("x", "x", "y", "y"))
    found = units_of(private, holdout)
    assert found.by_image and found.unit.equal(units_of(*sets()).unit)


def test_row_order_does_not_matter() -> None:
    private, holdout = sets()
    private = replace(private, groups=("x", None, None, "y", None, "y"))
    i, j = torch.tensor([5, 2, 0, 1, 4, 3]), torch.tensor([2, 3, 1, 0])
    turned = units_of(private.select(i), holdout.select(j))
    assert turned.unit.equal(units_of(private, holdout).unit)


def test_refuses_groups_of_two_classes() -> None:
    private, _ = sets()
    with refused("group 'x' in classes 'a' and 'b'", error=ConfigError):
        units_of(replace(private, groups=("x", None, None, "x", None, None)))


def test_numbers_follow_the_first_images() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    assert unit_numbers(torch.tensor([9, -4, 9, 2]), labels, "private").tolist() == [0, 1, 0, 2]
    assert unit_numbers(labels[:0], labels[:0], "private").tolist() == []
