"""Properties that every score has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from inversight.core.errors import ConfigError
from inversight.scores import ddcs, frechet_distance, kernel_distance, knn_distance, prdc
from inversight.scores.result import ScoreResult
from tests.draws import rng
from tests.scores.build import gaussian, interval, shuffled, value

Score = Callable[..., ScoreResult]
SCORES: dict[str, Score] = {
    "ddcs_best": ddcs, "ddcs_average": ddcs, "covered": ddcs, "knn_distance": knn_distance,
    "precision": prdc, "recall": prdc, "density": prdc, "coverage": prdc,
    "frechet": frechet_distance, "kid": kernel_distance,
}  # fmt: skip
RESAMPLED = pytest.mark.parametrize("score", [ddcs, prdc, knn_distance])
PRIVATE, MADE = gaussian(60, 5, classes=3), gaussian(50, 5, classes=3, seed=1, shift=0.8)


def close(found: ScoreResult, expected: ScoreResult, order: torch.Tensor | slice) -> None:
    for key, summary in expected.summary.items():
        for name in ("value", "low", "high"):
            number, given = getattr(summary, name), getattr(found.summary[key], name)
            assert given == (number if number is None else pytest.approx(number, rel=1e-9))
    for key, column in expected.per_sample.items():
        same = found.per_sample[key]
        torch.testing.assert_close(same, column[order], rtol=1e-9, atol=0, equal_nan=True)


@pytest.mark.parametrize("key", sorted(SCORES.keys() - {"covered"}))
def test_farther_reconstructions_mean_less_leakage(key: str) -> None:
    results = [
        SCORES[key](PRIVATE, gaussian(60, 5, classes=3, seed=1, shift=s)) for s in (0, 3, 30)
    ]
    values = [value(result, key) for result in results]
    higher = results[0].direction == "higher"
    assert values == sorted(values, reverse=higher) and values[0] != values[2]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("ddcs_best", 1e6), ("covered", 1), ("knn_distance", 0), ("frechet", 0), ("precision", 1),
        ("recall", 1), ("density", 1), ("coverage", 1),
    ],
)  # fmt: skip
def test_identical_sets(key: str, expected: float) -> None:
    assert value(SCORES[key](PRIVATE, PRIVATE), key) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("score", dict.fromkeys(SCORES.values()))
def test_does_not_depend_on_row_order(score: Score) -> None:
    (private, order), (made, other) = shuffled(PRIVATE), shuffled(MADE)
    found, expected = score(private, made), score(PRIVATE, MADE)
    close(found, expected, order if expected.rows == "private" else other)


@RESAMPLED
@pytest.mark.parametrize("memory", [1, 900])
def test_does_not_depend_on_memory(score: Score, memory: int) -> None:
    close(score(PRIVATE, MADE, memory=memory), score(PRIVATE, MADE), slice(None))


@RESAMPLED
def test_intervals_hold_the_value_and_depend_on_the_seed(score: Score) -> None:
    one, same, other = (score(PRIVATE, MADE, rng=rng(seed)).summary for seed in (1, 1, 2))
    assert one == same != other
    for key, summary in one.items():
        low, high = interval(summary)
        assert low < high and value(summary) == value(other[key])
    for summary in score(PRIVATE, MADE, bootstrap=0).summary.values():
        assert (summary.low, summary.high) == (None, None)


@pytest.mark.parametrize(
    ("score", "option"),
    [
        (ddcs, {"floor": 0.0}), (ddcs, {"floor": float("nan")}), (ddcs, {"memory": 0}),
        (ddcs, {"bootstrap": -1}), (prdc, {"k": 0}), (prdc, {"memory": 0}),
        (knn_distance, {"memory": 0}),
    ],
)  # fmt: skip
def test_rejects_options_out_of_range(score: Score, option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        score(PRIVATE, MADE, **option)


@pytest.mark.parametrize("key", ["frechet", "kid"])
@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 1)])
def test_distances_of_sets_need_two_images(key: str, n: int, m: int) -> None:
    summary = SCORES[key](gaussian(n, 4), gaussian(m, 4, seed=1)).summary[key]
    assert summary.value is None and "at least 2" in str(summary.reason)
    assert summary.as_json()["private_images"] == n
