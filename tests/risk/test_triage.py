"""Predictors and their agreement with what was measured."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor

from inversight.core.errors import InputError
from inversight.risk.signals import SIGNALS
from inversight.risk.triage import (
    _spearman,
    _within,
    agreement,
    cross_validated,
    expected_risk,
    learn,
    oriented,
)
from inversight.scores.result import Summary

N, CLASSES = 120, 6
LABELS = [f"c{i % CLASSES}" for i in range(N)]


def drawn(seed: int = 0) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    return {name: torch.from_numpy(rng.normal(size=N)) for name in SIGNALS}


def agree(
    predicted: Tensor, measured: Tensor, labels: list[str] = LABELS, **options: Any
) -> Summary:
    return agreement({"x": predicted}, measured, labels, **options)["x"]


def distances(values: dict[str, Tensor], seed: int = 1, noise: float = 0.1) -> Tensor:
    """Fall with density and rise with loss; classes lie on levels of their own."""
    rng = np.random.default_rng(seed)
    level = torch.from_numpy(rng.normal(size=CLASSES))[torch.arange(N) % CLASSES]
    error = torch.from_numpy(rng.normal(size=N))
    return (0.5 * values["loss"] - values["local_density"] + noise * error + level).exp()


def with_correlation(r: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return pairs of normal values, each (N,), of correlation ``r``."""
    x, noise = torch.from_numpy(rng.normal(size=(2, N)))
    return x, r * x + math.sqrt(1 - r * r) * noise


@pytest.mark.parametrize(
    ("name", "ranks"), [("loss", [0, 1, 0.5, 0.5]), ("local_density", [1, 0, 0.5, 0.5])]
)
def test_expected_risk_of_one_signal_is_its_rank(name: str, ranks: list[float]) -> None:
    found = expected_risk({name: torch.tensor([5.0, 1.0, 3.0, 3.0, math.nan])})
    assert found.tolist() == pytest.approx([*ranks, math.nan], nan_ok=True)


def test_families_of_signals_have_equal_weights() -> None:
    """Two measures of confidence weigh as much as one of place."""
    up, down = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    found = expected_risk({"loss": down, "margin": up, "local_density": down})
    assert found.tolist() == [0.5, 0.5]
    assert expected_risk({"loss": down, "local_density": up}).tolist() == [0.0, 1.0]


@given(st.integers(0, 10_000))
def test_expected_risk_depends_on_ranks_and_not_on_row_order(seed: int) -> None:
    values = drawn(seed)
    one = expected_risk(values)
    assert float(one.min()) >= 0 and float(one.max()) <= 1
    torch.testing.assert_close(one, expected_risk({n: (2 * v).exp() for n, v in values.items()}))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(expected_risk({n: v[order] for n, v in values.items()}), one[order])


def test_rejects_values_without_a_signal() -> None:
    with pytest.raises(InputError, match="none of the signals"):
        expected_risk({"unknown": torch.zeros(3)})


def test_learn_finds_the_slopes_of_the_data() -> None:
    values = drawn()
    made = learn(values, distances(values), LABELS)
    assert made.classes == set(LABELS)
    expected = {**dict.fromkeys(SIGNALS, 0.0), "loss": 0.5, "local_density": -1.0}
    assert made.slopes == pytest.approx(expected, abs=0.1)
    best = 0.5 * values["loss"] - values["local_density"]
    assert spearmanr(made.risk, -best).statistic > 0.98


def test_learn_predicts_classes_that_were_not_attacked() -> None:
    values = drawn()
    nearest = distances(values)
    attacked = torch.tensor([name in ("c0", "c1") for name in LABELS])
    made = learn(values, nearest.masked_fill(~attacked, math.nan), LABELS)
    assert made.classes == {"c0", "c1"}
    found = agree(made.risk, (-nearest).masked_fill(attacked, math.nan))
    assert found.extra["images"] == 80 and float(found.extra["within"]) > 0.9


@pytest.mark.parametrize("label", ["c0", "c4"])
def test_prediction_of_a_class_does_not_depend_on_its_own_distances(label: str) -> None:
    values = drawn()
    nearest = distances(values)
    own = torch.tensor([name == label for name in LABELS])
    noise = torch.from_numpy(np.random.default_rng(5).normal(size=int(own.sum())))
    changed = nearest.masked_scatter(own, (9 * noise).exp())
    one, other = (cross_validated(values, d, LABELS) for d in (nearest, changed))
    assert torch.equal(one[own], other[own])
    assert not torch.equal(one[~own], other[~own])


def test_learns_nothing_from_noise() -> None:
    """Predictions from unrelated signals agree with nothing on classes left out of the fit."""
    found = []
    for seed in range(6):
        nearest = distances(drawn(seed + 100), seed)
        risk = cross_validated(drawn(seed), nearest, LABELS)
        found.append(agree(risk, -nearest, resamples=0).extra["within"])
    assert abs(float(np.mean(np.array(found, dtype=float)))) < 0.1


@pytest.mark.parametrize(("classes", "each", "text"), [(1, 50, "at least 2"), (4, 2, "and 8")])
def test_learn_rejects_too_few_classes_or_images(classes: int, each: int, text: str) -> None:
    labels = [f"c{i % classes}" for i in range(classes * each)]
    values = {"loss": torch.arange(len(labels)).double()}
    with pytest.raises(InputError, match=text):
        learn(values, torch.ones(len(labels)).double(), labels)


def test_two_classes_can_be_learned_from_but_not_evaluated() -> None:
    labels = ["a", "b"] * 10
    values, nearest = {"loss": torch.arange(20).double()}, torch.arange(1, 21).double()
    assert learn(values, nearest, labels).slopes["loss"] > 0
    with pytest.raises(InputError, match="at least 3"):
        cross_validated(values, nearest, labels)


def test_agreement_is_spearmans_correlation() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, N).astype(float), rng.normal(size=N)
    b += 0.5 * a
    a[3], b[4] = math.nan, math.nan
    found = agree(torch.from_numpy(a), torch.from_numpy(b))
    assert found.value == pytest.approx(spearmanr(a, b, nan_policy="omit").statistic)
    assert found.extra["images"] == N - 2
    assert found.low is not None and found.high is not None
    assert found.low < found.value < found.high


def test_agreement_within_classes_leaves_out_differences_between_classes() -> None:
    level = 9 * (torch.arange(N).double() % CLASSES)
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(2, N)))
    found = agree(level + noise[0], level + noise[1])
    assert found.value is not None and found.value > 0.9
    assert abs(float(found.extra["within"])) < 0.25
    assert float(found.extra["within_low"]) < 0 < float(found.extra["within_high"])
    assert agree(noise[0], level + noise[0]).extra["within"] == pytest.approx(1.0)


def test_agreement_with_itself_and_with_its_opposite() -> None:
    x = drawn()["loss"]
    same = agree(x, x)
    assert same.value == pytest.approx(1.0) and same.low == pytest.approx(1.0)
    assert agree(-x, x).value == pytest.approx(-1.0)


def test_agreement_depends_on_the_seed() -> None:
    x, y = drawn()["loss"], distances(drawn())
    assert agree(x, y) == agree(x, y)
    assert agree(x, y, rng=torch.Generator().manual_seed(9)).low != agree(x, y).low


def test_interval_has_about_the_stated_coverage() -> None:
    rng = np.random.default_rng(0)
    truth = 6 / math.pi * math.asin(0.6 / 2)  # Spearman's of a normal pair of correlation 0.6
    found = [agree(*with_correlation(0.6, rng), resamples=200) for _ in range(100)]
    assert 88 <= sum(one.low < truth < one.high for one in found) <= 100


@pytest.mark.parametrize(
    ("values", "measured", "reason"),
    [([0.0] * 2, [0.0] * 2, "three"), ([0.0] * 9, [float(i) for i in range(9)], "same value")],
)
def test_agreement_without_a_value_has_a_reason(
    values: list[float], measured: list[float], reason: str
) -> None:
    found = agree(torch.tensor(values), torch.tensor(measured), ["a"] * len(values))
    assert found.value is None and reason in str(found.reason)


def test_oriented_signals_have_their_sign() -> None:
    values = drawn()
    for name, found in oriented(values).items():
        assert torch.equal(found, SIGNALS[name].sign * values[name])


def test_correlations_of_repeated_values_equal_those_of_the_resample() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 12).astype(float), rng.normal(size=12)
    sizes = np.array([5, 1, 6])
    groups = np.repeat(np.arange(3), sizes)
    start = (np.cumsum(sizes) - sizes)[groups]
    for _ in range(50):
        index = np.sort(start + (rng.random(12) * sizes[groups]).astype(int))
        times = np.bincount(index, minlength=12)[None].astype(float)
        expected = spearmanr(x[index], y[index]).statistic
        assert _spearman(x, y, times)[0] == pytest.approx(expected)
        scaled = [pd.Series(v[index]).groupby(groups).transform(scaled_ranks) for v in (x, y)]
        assert _within(x, y, sizes, times)[0] == pytest.approx(np.corrcoef(*scaled)[0, 1])


def scaled_ranks(values: pd.Series) -> pd.Series:
    """Return ranks scaled to [-1, 1]."""
    n = len(values)
    return (2 * values.rank() - n - 1) / max(1, n - 1)
