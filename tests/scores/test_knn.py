from __future__ import annotations

import pytest
import torch

from inversight.core.errors import ConfigError
from inversight.embeddings.base import Features
from inversight.scores import knn_distance
from tests.scores.build import features, gaussian, shuffled


def value(private: Features, reconstructions: Features, **options: int) -> float:
    found = knn_distance(private, reconstructions, **options).summary["knn_distance"].value
    assert found is not None
    return found


def test_closed_form_uses_the_reconstructions_own_class() -> None:
    private = features([[0.0], [10.0], [3.0]], labels=[0, 0, 1])
    made = features([[4.0], [9.0], [0.0]], labels=[0, 0, 1], prefix="r")
    result = knn_distance(private, made)
    assert result.per_sample["knn_distance"].tolist() == [16.0, 1.0, 9.0]
    assert value(private, made) == pytest.approx(26 / 3)
    assert (result.direction, result.rows) == ("lower", "reconstructions")


def test_equals_all_pairs_by_cdist() -> None:
    private, made = gaussian(40, 10, classes=4), gaussian(70, 10, classes=4, seed=1)
    distances = torch.cdist(made.flat().double(), private.flat().double()) ** 2
    distances[made.labels[:, None] != private.labels[None, :]] = float("inf")
    expected = distances.amin(1)
    torch.testing.assert_close(knn_distance(private, made).per_sample["knn_distance"], expected)
    assert value(private, made) == pytest.approx(float(expected.mean()))


def test_identity_is_zero() -> None:
    given = gaussian(9, 30, classes=3, shift=50)
    assert value(given, given) == 0.0


def test_farther_reconstructions_score_higher() -> None:
    private = gaussian(30, 6)
    found = [value(private, gaussian(30, 6, seed=1, shift=shift)) for shift in (0, 1, 3)]
    assert found == sorted(found)


def test_row_order_does_not_matter() -> None:
    private, made = gaussian(30, 6, classes=3), gaussian(40, 6, classes=3, seed=1)
    other, order = shuffled(made)
    expected, found = knn_distance(private, made), knn_distance(shuffled(private)[0], other)
    assert torch.equal(found.per_sample["knn_distance"], expected.per_sample["knn_distance"][order])
    assert found.summary == expected.summary


@pytest.mark.parametrize("memory", [1, 2000])
def test_block_size_does_not_matter(memory: int) -> None:
    private, made = gaussian(30, 6, classes=3), gaussian(40, 6, classes=3, seed=1)
    assert value(private, made, memory=memory) == pytest.approx(value(private, made), rel=1e-9)


def test_memory_out_of_range_is_named() -> None:
    with pytest.raises(ConfigError, match="memory"):
        knn_distance(gaussian(3, 4), gaussian(3, 4, seed=1), memory=0)


def test_the_interval_is_that_of_a_mean_over_reconstructions() -> None:
    private, made = gaussian(50, 4), gaussian(600, 4, seed=1)
    result = knn_distance(private, made, bootstrap=2000)
    summary, values = result.summary["knn_distance"], result.per_sample["knn_distance"]
    assert summary.value is not None and summary.low is not None and summary.high is not None
    half = 1.96 * float(values.std()) / 600**0.5
    assert summary.high - summary.low == pytest.approx(2 * half, rel=0.15)
    assert summary.low < summary.value < summary.high
    again = knn_distance(private, made, bootstrap=2000).summary["knn_distance"]
    assert again == summary
