"""Predictors and their agreement with what was measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from inversight.core.errors import InputError
from inversight.risk.signals import SIGNALS
from inversight.risk.triage import (
    _spearman,
    _within,
    agreement,
    expected_risk,
    learn,
    learned_elsewhere,
    turned,
)

N, CLASSES = 120, 6
LABELS = [f"c{i % CLASSES}" for i in range(N)]


def drawn(seed: int = 0) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    return {name: torch.from_numpy(rng.normal(size=N)) for name in SIGNALS}


def distances(values: dict[str, Tensor], seed: int = 1, noise: float = 0.1) -> Tensor:
    """Fall with density and rise with loss; classes lie on levels of their own."""
    rng = np.random.default_rng(seed)
    level = torch.from_numpy(rng.normal(size=CLASSES))[torch.arange(N) % CLASSES]
    error = torch.from_numpy(rng.normal(size=N))
    return (0.5 * values["loss"] - values["local_density"] + noise * error + level).exp()


def test_one_signal_is_its_rank() -> None:
    loss = torch.tensor([5.0, 1.0, 3.0, 3.0, math.nan])
    assert expected_risk({"loss": loss}).tolist()[:4] == pytest.approx([0, 1, 0.5, 0.5])
    assert expected_risk({"loss": loss})[4].isnan()
    dense = expected_risk({"local_density": loss})
    assert dense.tolist()[:4] == pytest.approx([1, 0, 0.5, 0.5])


def test_families_count_alike() -> None:
    """Two ways of saying how sure the target is weigh as much as one place."""
    up, down = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    found = expected_risk({"loss": down, "margin": up, "local_density": down})
    assert found.tolist() == [0.5, 0.5]
    assert expected_risk({"loss": down, "local_density": up}).tolist() == [0.0, 1.0]


@given(st.integers(0, 10_000))
def test_only_ranks_matter_and_rows_do_not(seed: int) -> None:
    values = drawn(seed)
    one = expected_risk(values)
    assert float(one.min()) >= 0 and float(one.max()) <= 1
    other = expected_risk({name: (2 * v).exp() for name, v in values.items()})
    torch.testing.assert_close(one, other)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(expected_risk({n: v[order] for n, v in values.items()}), one[order])


def test_nothing_to_tell_by_is_said() -> None:
    with pytest.raises(InputError, match="none of the signals"):
        expected_risk({"unknown": torch.zeros(3)})


def test_what_is_there_is_learned() -> None:
    values = drawn()
    made = learn(values, distances(values), LABELS)
    assert made.classes == set(LABELS)
    # The slopes of standard normal signals are those that distances were made with.
    assert made.slopes["loss"] == pytest.approx(0.5, abs=0.1)
    assert made.slopes["local_density"] == pytest.approx(-1.0, abs=0.1)
    assert max(abs(made.slopes[n]) for n in ("margin", "entropy", "forgetting")) < 0.1
    best = 0.5 * values["loss"] - values["local_density"]
    assert spearmanr(made.risk, -best).statistic > 0.98


def test_a_few_classes_teach_the_others() -> None:
    values = drawn()
    nearest = distances(values)
    attacked = torch.tensor([name in ("c0", "c1") for name in LABELS])
    made = learn(values, nearest.masked_fill(~attacked, math.nan), LABELS)
    assert made.classes == {"c0", "c1"}
    found = agreement({"learned": made.risk}, (-nearest).masked_fill(attacked, math.nan), LABELS)[
        "learned"
    ]
    assert found.extra["images"] == 80 and float(found.extra["within"]) > 0.9


def test_what_is_judged_is_never_fitted() -> None:
    """Whatever a class's own distances are, its prediction is the same."""
    values = drawn()
    nearest = distances(values)
    one = learned_elsewhere(values, nearest, LABELS)
    for label in ("c0", "c4"):
        own = torch.tensor([name == label for name in LABELS])
        changed = nearest.clone()
        rng = np.random.default_rng(5)
        changed[own] = torch.from_numpy(np.exp(9 * rng.normal(size=int(own.sum()))))
        other = learned_elsewhere(values, changed, LABELS)
        assert torch.equal(one[own], other[own])
        assert not torch.equal(one[~own], other[~own])


def test_nothing_is_learned_from_noise() -> None:
    """Judged on left-out classes, unrelated signals agree with nothing."""
    found = []
    for seed in range(12):
        values = drawn(seed)
        nearest = distances(drawn(seed + 100), seed)
        risk = learned_elsewhere(values, nearest, LABELS)
        found.append(agreement({"l": risk}, -nearest, LABELS, resamples=0)["l"].extra["within"])
    assert abs(float(np.mean(np.array(found, dtype=float)))) < 0.1


@pytest.mark.parametrize(("classes", "each", "text"), [(1, 50, "at least 2"), (4, 2, "and 8")])
def test_too_little_to_learn_from(classes: int, each: int, text: str) -> None:
    labels = [f"c{i % classes}" for i in range(classes * each)]
    values = {"loss": torch.arange(len(labels)).double()}
    with pytest.raises(InputError, match=text):
        learn(values, torch.ones(len(labels)).double(), labels)


def test_two_classes_can_teach_but_not_be_judged() -> None:
    labels = ["a", "b"] * 10
    values = {"loss": torch.arange(20).double()}
    nearest = torch.arange(1, 21).double()
    assert learn(values, nearest, labels).slopes["loss"] > 0
    with pytest.raises(InputError, match="at least 3"):
        learned_elsewhere(values, nearest, labels)


def test_agreement_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, N).astype(float), rng.normal(size=N)
    b += 0.5 * a
    a[3], b[4] = math.nan, math.nan
    found = agreement({"x": torch.from_numpy(a)}, torch.from_numpy(b), LABELS)["x"]
    known = ~(np.isnan(a) | np.isnan(b))
    assert found.value == pytest.approx(float(spearmanr(a[known], b[known]).statistic))
    assert found.extra["images"] == N - 2
    assert found.low is not None and found.high is not None
    assert found.low < found.value < found.high


def test_agreement_within_classes_does_not_see_the_classes() -> None:
    level = torch.arange(N).double() % CLASSES
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(2, N)))
    found = agreement({"x": 9 * level + noise[0]}, 9 * level + noise[1], LABELS)["x"]
    assert found.value is not None and found.value > 0.9
    assert abs(float(found.extra["within"])) < 0.25
    assert float(found.extra["within_low"]) < 0 < float(found.extra["within_high"])
    same = agreement({"x": noise[0]}, 9 * level + noise[0], LABELS)["x"]
    assert same.extra["within"] == pytest.approx(1.0)


def test_identity_direction_and_seed() -> None:
    x = drawn()["loss"]
    found = agreement({"same": x, "against": -x}, x, LABELS)
    assert found["same"].value == pytest.approx(1.0) and found["same"].low == pytest.approx(1.0)
    assert found["against"].value == pytest.approx(-1.0)
    y = distances(drawn())
    assert agreement({"x": x}, y, LABELS) == agreement({"x": x}, y, LABELS)
    other = agreement({"x": x}, y, LABELS, rng=torch.Generator().manual_seed(9))
    assert other["x"].low != agreement({"x": x}, y, LABELS)["x"].low


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        x = rng.normal(size=N)
        y = 0.6 * x + 0.8 * rng.normal(size=N)
        one = agreement(
            {"x": torch.from_numpy(x)}, torch.from_numpy(y), LABELS, resamples=200
        )["x"]  # fmt: skip
        truth = 6 / math.pi * math.asin(0.6 / 2)  # Spearman's of a normal pair of correlation 0.6
        assert one.low is not None and one.high is not None
        hits += one.low < truth < one.high
    assert 88 <= hits <= 100


def test_null_has_a_reason() -> None:
    few = agreement({"x": torch.zeros(2)}, torch.zeros(2), ["a", "b"])["x"]
    assert few.value is None and "three" in str(few.reason)
    same = agreement({"x": torch.zeros(9)}, torch.arange(9).double(), ["a"] * 9)["x"]
    assert same.value is None and "same value" in str(same.reason)


def test_signals_are_turned_by_their_sign() -> None:
    values = drawn()
    for name, found in turned(values).items():
        assert torch.equal(found, SIGNALS[name].sign * values[name])


def test_resampled_ranks_are_those_of_the_drawn_values() -> None:
    """Counting how often each image was drawn gives what ranking the draws gives."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 12).astype(float), rng.normal(size=12)
    sizes = np.array([5, 1, 6])
    start = np.repeat(np.cumsum(sizes) - sizes, sizes)
    for _ in range(50):
        index = np.sort(start + (rng.random(12) * np.repeat(sizes, sizes)).astype(int))
        times = np.bincount(index, minlength=12)[None].astype(float)
        assert _spearman(x, y, times)[0] == pytest.approx(
            float(spearmanr(x[index], y[index]).statistic)
        )
        scaled = [
            np.concatenate(
                [
                    (2 * rankdata(v[index][s : s + n]) - n - 1) / max(1, n - 1)
                    for s, n in zip(np.cumsum(sizes) - sizes, sizes, strict=True)
                ]
            )
            for v in (x, y)
        ]
        assert _within(x, y, sizes, times)[0] == pytest.approx(np.corrcoef(*scaled)[0, 1])
