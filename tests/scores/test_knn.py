from __future__ import annotations

from typing import Any

import pytest
import torch

from inversight.embeddings.base import Features
from inversight.scores import knn_distance
from tests.scores.build import features, gaussian, interval, value


def distance(private: Features, made: Features, **options: Any) -> float:
    return value(knn_distance(private, made, **options))


def test_closed_form_compares_within_classes() -> None:
    private = features([[0.0], [10.0], [3.0]], labels=[0, 0, 1])
    result = knn_distance(private, features([[4.0], [9.0], [0.0]], labels=[0, 0, 1], prefix="r"))
    assert result.per_sample["knn_distance"].tolist() == [16.0, 1.0, 9.0]
    assert value(result) == pytest.approx(26 / 3)
    assert (result.direction, result.rows) == ("lower", "reconstructions")


def test_equals_all_pairs_by_cdist() -> None:
    private, made = gaussian(40, 10, classes=4), gaussian(70, 10, classes=4, seed=1)
    distances = torch.cdist(made.flat().double(), private.flat().double()) ** 2
    distances[made.labels[:, None] != private.labels[None, :]] = float("inf")
    expected = distances.amin(1)
    torch.testing.assert_close(knn_distance(private, made).per_sample["knn_distance"], expected)
    assert distance(private, made) == pytest.approx(float(expected.mean()))


def test_interval_is_that_of_a_mean_over_reconstructions() -> None:
    private, made = gaussian(50, 4), gaussian(600, 4, seed=1)
    one, again = (knn_distance(private, made, bootstrap=2000) for _ in range(2))
    low, high = interval(one.summary["knn_distance"])
    half = 1.96 * float(one.per_sample["knn_distance"].std()) / 600**0.5
    assert high - low == pytest.approx(2 * half, rel=0.15)
    assert low < value(one) < high and again.summary == one.summary
