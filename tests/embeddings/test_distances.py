from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inversight.embeddings import distances
from inversight.embeddings.base import Features
from inversight.embeddings.distances import squared_distances


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_differences(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> Tensor:
    a, b = torch.cat(left, 1).double(), torch.cat(right, 1).double()
    return (a[:, None, :] - b[None, :, :]).square().sum(2)


def test_squared_distances_sum_over_blocks() -> None:
    left, right = (randn(7, 5), randn(7, 12, seed=1)), (randn(4, 5, seed=2), randn(4, 12, seed=3))
    found = squared_distances(left, right)
    assert found.shape == (7, 4)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, by_differences(left, right), rtol=1e-9, atol=0)


@pytest.mark.parametrize("distance", [1e-5, 1e-3, 0.1, 2.0])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_near_duplicates_of_long_features_keep_their_distance(
    distance: float, offset: float
) -> None:
    right = randn(20, 2000)
    right = 30 * right / right.norm(dim=1, keepdim=True) + offset
    step = randn(20, 2000, seed=1)
    left = right + step * (distance**0.5 / step.norm(dim=1, keepdim=True))
    found = squared_distances((left,), (right,))
    torch.testing.assert_close(found, by_differences((left,), (right,)), rtol=1e-8, atol=0)


def test_equal_rows_are_at_zero_wherever_they_stand() -> None:
    rows = 1000 + randn(9, 33)
    left = rows[torch.tensor([3, 3, 0, 8, 3])]
    found = squared_distances((left,), (rows,))
    assert (found == 0).nonzero().tolist() == [[0, 3], [1, 3], [2, 0], [3, 8], [4, 3]]
    assert bool((squared_distances((rows,), (rows.roll(1, 0),)) >= 0).all())


@pytest.mark.parametrize("scratch", [1, 50, 333])
def test_the_size_of_the_parts_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, scratch: int
) -> None:
    left, right = (randn(6, 40), randn(6, 9, seed=1)), (randn(5, 40, seed=2), randn(5, 9, seed=3))
    left[0][:3], left[1][:3] = right[0][:3] + 1e-4, right[1][:3]
    whole = squared_distances(left, right)
    monkeypatch.setattr(distances, "_SCRATCH", scratch)
    torch.testing.assert_close(squared_distances(left, right), whole, rtol=1e-9, atol=0)


def test_half_precision_features_are_compared_in_double() -> None:
    left, right = randn(3, 64).bfloat16(), randn(4, 64, seed=1).bfloat16()
    torch.testing.assert_close(
        squared_distances((left,), (right,)), by_differences((left,), (right,)), rtol=1e-9, atol=0
    )


def test_no_rows_give_no_distances() -> None:
    assert squared_distances((randn(0, 3),), (randn(4, 3),)).shape == (0, 4)
    assert squared_distances((randn(4, 3),), (randn(0, 3),)).shape == (4, 0)


@pytest.mark.parametrize(
    ("left", "right"),
    [((), ()), ((randn(2, 3),), ()), ((randn(2, 3),), (randn(2, 4),))],
)
def test_blocks_that_do_not_match_are_refused(
    left: tuple[Tensor, ...], right: tuple[Tensor, ...]
) -> None:
    with pytest.raises(ValueError, match="block"):
        squared_distances(left, right)


def test_features_select_and_flatten_in_row_order() -> None:
    given = Features((randn(3, 2), randn(3, 4, seed=1)), torch.tensor([5, 6, 7]), ("a", "b", "c"))
    picked = given.select(torch.tensor([2, 0]))
    assert picked.ids == ("c", "a")
    assert picked.labels.tolist() == [7, 5]
    assert len(picked) == 2
    torch.testing.assert_close(picked.flat(), given.flat()[[2, 0]], rtol=0, atol=0)
