"""Squared distances against differences in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inversight.embeddings import distances
from inversight.embeddings.base import Features
from inversight.embeddings.distances import squared_distances
from tests.draws import normal

Blocks = tuple[Tensor, ...]


def blocks(rows: int, *widths: int, seed: int = 0) -> Blocks:
    return tuple(
        normal(rows, width, seed=seed + i, dtype=torch.float32) for i, width in enumerate(widths)
    )


def check(left: Blocks, right: Blocks, rtol: float = 1e-9) -> None:
    """Compare with differences of all pairs in float64."""
    a, b = torch.cat(left, 1).double(), torch.cat(right, 1).double()
    expected = (a[:, None, :] - b[None, :, :]).square().sum(2)
    torch.testing.assert_close(squared_distances(left, right), expected, rtol=rtol, atol=0)


def test_sums_over_blocks() -> None:
    check(blocks(7, 5, 12), blocks(4, 5, 12, seed=2))


@pytest.mark.parametrize("distance", [1e-5, 1e-3, 0.1, 2.0])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_is_exact_for_near_duplicates(distance: float, offset: float) -> None:
    right, step = blocks(20, 2000, 2000)
    right = 30 * right / right.norm(dim=1, keepdim=True) + offset
    check((right + step * (distance**0.5 / step.norm(dim=1, keepdim=True)),), (right,), rtol=1e-8)


def test_equal_rows_have_distance_zero() -> None:
    rows = 1000 + normal(9, 33, dtype=torch.float32)
    left = rows[torch.tensor([3, 3, 0, 8, 3])]
    found = squared_distances((left,), (rows,))
    assert (found == 0).nonzero().tolist() == [[0, 3], [1, 3], [2, 0], [3, 8], [4, 3]]
    assert bool((squared_distances((rows,), (rows.roll(1, 0),)) >= 0).all())


@pytest.mark.parametrize("scratch", [1, 50, 333])
def test_does_not_depend_on_block_size(monkeypatch: pytest.MonkeyPatch, scratch: int) -> None:
    left, right = blocks(6, 40, 9), blocks(5, 40, 9, seed=2)
    left[0][:3], left[1][:3] = right[0][:3] + 1e-4, right[1][:3]
    monkeypatch.setattr(distances, "_SCRATCH", scratch)
    check(left, right)


def test_compares_half_precision_in_float64() -> None:
    left, right = ((normal(n, 64, seed=n).bfloat16(),) for n in (3, 4))
    check(left, right)


def test_no_rows() -> None:
    assert squared_distances(blocks(0, 3), blocks(4, 3)).shape == (0, 4)
    assert squared_distances(blocks(4, 3), blocks(0, 3)).shape == (4, 0)


@pytest.mark.parametrize(
    ("left", "right"), [((), ()), (blocks(2, 3), ()), (blocks(2, 3), blocks(2, 4))]
)
def test_rejects_blocks_that_do_not_match(left: Blocks, right: Blocks) -> None:
    with pytest.raises(ValueError, match="block"):
        squared_distances(left, right)


def test_features_are_selected_and_flattened_in_row_order() -> None:
    given = Features(blocks(3, 2, 4), torch.tensor([5, 6, 7]), ("a", "b", "c"))
    picked = given.select(torch.tensor([2, 0]))
    assert (len(picked), picked.ids, picked.labels.tolist()) == (2, ("c", "a"), [7, 5])
    assert torch.equal(picked.flat(), given.flat()[[2, 0]])
