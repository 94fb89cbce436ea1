"""Designs of shadow models: complementary balanced halves, equally likely, of units drawn whole."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inversight.core.errors import ConfigError, DesignError, InputError
from inversight.risk.design import StratifiedHalves, draw_design, make_units


def units_of(sizes: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels and units of classes given by the number of images of each of their units."""
    flat = [(c, n) for c, units in enumerate(sizes) for n in units]
    labels = torch.tensor([c for c, n in flat for _ in range(n)])
    return labels, torch.tensor([u for u, (_, n) in enumerate(flat) for _ in range(n)])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=7), min_size=1, max_size=5),
    st.integers(0, 2**31),
)
def test_halves_are_complementary_and_as_equal_as_can_be(sizes: list[list[int]], seed: int) -> None:
    labels, units = units_of(sizes)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    labels, units = labels[order], 7 * units[order] - 3
    if max(map(len, sizes)) < 2:
        with pytest.raises(DesignError, match="at least two units"):
            draw_design(labels, units, pairs=1, seed=seed)
        return
    found = draw_design(labels, units, pairs=3, seed=seed)
    assert found.shape == (6, len(labels)) and found.dtype == torch.bool
    assert found[0::2].equal(~found[1::2])
    for row in found:
        totals = []
        for label in labels.unique():
            whole = {int(u): row[units == u] for u in units[labels == label].unique()}
            assert all(len(part.unique()) == 1 for part in whole.values())
            chosen = sum(bool(part[0]) for part in whole.values())
            assert chosen in (len(whole) // 2, len(whole) - len(whole) // 2)
            totals.append(2 * chosen - len(whole))
        assert abs(sum(totals)) <= 1


def test_all_halves_are_equally_likely() -> None:
    """Classes of 2, 3 and 1 units: two odd ones, one for each half."""
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    drawn = StratifiedHalves(labels).draw(np.random.default_rng(0), 24_000)
    possible = [
        half
        for half in product((False, True), repeat=6)
        if sum(half[:2]) == 1 and sum(half[2:5]) in (1, 2) and sum(half) == 3
    ]
    counts = Counter(map(tuple, drawn.tolist()))
    assert set(counts) == set(possible) and len(possible) == 12
    expected = 24_000 / 12
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_square < 31.3  # the 99.9 % quantile for 11 degrees of freedom


def test_pairs_depend_on_seed_and_index_alone() -> None:
    labels = torch.arange(5).repeat(9)
    found = draw_design(labels, pairs=8, seed=3)
    assert draw_design(labels, pairs=5, seed=3, first=3).equal(found[6:])
    assert not draw_design(labels, pairs=8, seed=4).equal(found)
    assert len({tuple(row) for row in found.tolist()}) == 16


def test_names_of_labels_and_units_do_not_matter() -> None:
    labels, units = units_of([[2, 1, 1, 3], [1, 1, 1], [2, 2]])
    expected = draw_design(labels, units, pairs=2, seed=0)
    assert draw_design(10 * labels + 5, 100 - units, pairs=2, seed=0).equal(expected)


def test_groups_and_twins_are_one_unit() -> None:
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    groups = ["a", "b", "a", None, None, "c", None, None]
    # Twins join group b with image 3; those across classes stay apart.
    twins = torch.tensor([-1, 1, -1, 1, 4, -1, 4, 4])
    found = make_units(labels, groups, twins)
    assert found.unit.tolist() == [0, 1, 0, 1, 2, 3, 4, 4]
    assert found.group.tolist() == [0, 1, 0, -1, -1, 2, -1, -1]
    assert not found.by_image and found.names == ("a", "b", "c")
    numbers = make_units(labels, torch.tensor([7, 2, 7, -1, -1, 9, -1, -1]), twins)
    assert numbers.unit.equal(found.unit) and numbers.group.equal(found.group)
    alone = make_units(labels)
    assert alone.unit.tolist() == list(range(8)) and alone.group.unique().tolist() == [-1]


def test_where_a_person_is_a_class_units_are_images_and_twins() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    twins = torch.tensor([0, 0, -1, -1, -1, -1])
    found = make_units(labels, ["ann", "ann", "ann", "bob", "bob", "bob"], twins)
    assert found.by_image
    assert found.unit.tolist() == [0, 0, 1, 2, 3, 4]
    assert found.group.tolist() == [0, 0, 0, 1, 1, 1]


def test_refuses_what_is_no_design_and_says_what_to_do() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    with pytest.raises(ConfigError, match=r"group 'ann' in classes 'cat' and 'dog'; name it"):
        make_units(labels, ["ann", None, "ann", None], classes=["cat", "dog"])
    with pytest.raises(InputError, match="groups: expected 4 groups"):
        make_units(labels, ["a"])
    with pytest.raises(InputError, match="twins: expected 4"):
        make_units(labels, twins=torch.tensor([1]))
    with pytest.raises(InputError, match="of one class, found images of classes 0 and 1 in unit 1"):
        draw_design(labels, torch.tensor([1, 2, 1, 2]), pairs=1, seed=0)
    with pytest.raises(InputError, match="units: expected 4 numbers"):
        draw_design(labels, torch.tensor([1, 2]), pairs=1, seed=0)
    with pytest.raises(InputError, match="labels: expected integers"):
        draw_design(labels.double(), pairs=1, seed=0)
    for pairs, first in ((0, 0), (1, -1)):
        with pytest.raises(ConfigError, match="pairs >= 1 and first >= 0"):
            draw_design(labels, pairs=pairs, first=first, seed=0)
