"""Exposure from unpaired models: against loops and all orders, right rates, planted effects."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import t

from inversight.core.errors import DesignError, InputError
from inversight.risk.unpaired import unpaired_exposure
from tests.reference.exposure_loop import centred, prior

Floats = NDArray[np.float64]


def models_of(
    seed: int, models: int, sizes: list[int], effect: Floats | float = 0.0
) -> tuple[Floats, NDArray[np.bool_], NDArray[np.int64]]:
    """Return log distances, membership drawn image by image, and labels; images of a model are dependent."""
    rng = np.random.default_rng([seed, models, 7])
    labels = np.repeat(np.arange(len(sizes)), sizes)
    member = rng.random((models, len(labels))) < 0.5
    common = 0.1 * rng.normal(size=(models, len(sizes)))[:, labels] * rng.normal(size=len(labels))
    noise = 0.15 * np.exp(0.3 * rng.normal(size=len(labels))) * rng.normal(size=member.shape)
    return 0.5 * rng.normal(size=len(labels)) + common + noise - effect * member, member, labels


def mean_effect(values: Floats, member: NDArray[np.bool_], images: list[int]) -> float:
    """Mean over images of out less in; images with no model on one side are left out."""
    found = []
    for i in images:
        a = [v for v, m in zip(values[:, i], member[:, i], strict=True) if m and not math.isnan(v)]
        b = [
            v
            for v, m in zip(values[:, i], member[:, i], strict=True)
            if not m and not math.isnan(v)
        ]
        if a and b:
            found.append(sum(b) / len(b) - sum(a) / len(a))
    return sum(found) / len(found)


def test_agrees_with_loops() -> None:
    values, member, labels = models_of(0, 11, [5, 8], effect=0.1)
    values[4, labels == 0] = np.nan
    n = len(labels)
    private = np.arange(n) % 2 == 0
    found = unpaired_exposure(values, member, labels, private=private, redraws=99)
    own = np.array([[centred(values, labels.tolist(), k, i) for i in range(n)] for k in range(11)])
    facts, aucs = [], []
    for i in range(n):
        known = ~np.isnan(own[:, i])
        a, b = own[known & member[:, i], i], own[known & ~member[:, i], i]
        squares = ((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()
        d = len(a) + len(b) - 2
        facts.append((b.mean() - a.mean(), squares / d, d, 1 / len(a) + 1 / len(b)))
        aucs.append(np.mean([[(y > x) + 0.5 * (y == x) for x in a] for y in b]))
    s0, d0 = prior([f[1] for f in facts], [f[2] for f in facts])
    for i, (effect, variance, d, weight) in enumerate(facts):
        joined = s0 if math.isinf(d0) else (d0 * s0 + d * variance) / (d0 + d)
        freedom = min(d + d0, sum(f[2] for f in facts))
        error = math.sqrt(joined * weight)
        assert found.per_sample["exposure"][i].log() == pytest.approx(effect)
        assert found.per_sample["exposure_p"][i] == pytest.approx(t.sf(effect / error, freedom))
    mean = found.summary["exposure_mean"]
    images = np.flatnonzero(private).tolist()
    assert math.log(mean.value or 0) == pytest.approx(mean_effect(own, member, images))
    each = [mean_effect(np.delete(own, k, 0), np.delete(member, k, 0), images) for k in range(11)]
    half = t.ppf(0.975, 10) * math.sqrt(10 / 11 * ((np.array(each) - np.mean(each)) ** 2).sum())
    assert math.log(mean.high or 0) - math.log(mean.value or 0) == pytest.approx(half)
    assert found.summary["exposure_auc"].value == pytest.approx(np.mean(np.array(aucs)[private]))
    assert found.differences.shape == (0, n)


def test_p_of_the_set_agrees_with_all_orders() -> None:
    for seed in range(3):
        values, member, labels = models_of(seed, 5, [6, 6], effect=0.05)
        own = np.array(
            [[centred(values, labels.tolist(), k, i) for i in range(12)] for k in range(5)]
        )
        images = [i for i in range(12) if 0 < member[:, i].sum() < 5]
        observed = mean_effect(own, member, images)
        means = [mean_effect(own, member[list(o)], images) for o in permutations(range(5))]
        expected = float(np.mean(np.array(means) >= observed - 1e-12))
        found = unpaired_exposure(values, member, labels).summary["exposure_mean"].extra["p_value"]
        assert abs(float(found) - expected) < 4 * math.sqrt(expected * (1 - expected) / 9999) + 2e-4


def test_without_effects_p_values_hold_their_level() -> None:
    p_set, any_flag, small, simulations = [], 0, [], 150
    for seed in range(simulations):
        values, member, labels = models_of(seed, 16, [4, 6, 10, 20])
        found = unpaired_exposure(values, member, labels, redraws=99)
        p_set.append(float(found.summary["exposure_mean"].extra["p_value"]))
        any_flag += bool(found.per_sample["exposed"].any())
        p = found.per_sample["exposure_p"]
        small.append(float((p[p.isfinite()] <= 0.05).double().mean()))
    for level in (0.05, 0.2, 0.5):
        error = math.sqrt(level * (1 - level) / simulations)
        assert abs(np.mean(np.array(p_set) <= level) - level) < 3.5 * error
    assert abs(np.mean(small) - 0.05) < 0.012
    assert any_flag / simulations <= 0.1 + 3 * math.sqrt(0.09 / simulations)


def test_planted_effects_are_found() -> None:
    recall, wrong, held = [], [], []
    for seed in range(15):
        effect = np.where(np.arange(60) % 4 == 0, 0.5, 0.0)
        values, member, labels = models_of(seed, 24, [20, 20, 20], effect)
        found = unpaired_exposure(values, member, labels, redraws=199)
        flags = found.per_sample["exposed"].numpy()
        recall.append(flags[effect > 0].mean())
        wrong.append(flags[effect == 0].sum() / max(1, flags.sum()))
        mean = found.summary["exposure_mean"]
        held.append(mean.low <= math.exp(effect.mean()) <= mean.high)  # type: ignore[operator]
        assert float(mean.extra["p_value"]) == pytest.approx(1 / 200)
        assert found.summary["exposure_auc"].low > 0.5  # type: ignore[operator]
    assert np.mean(recall) > 0.8 and np.mean(wrong) < 0.12 and np.mean(held) >= 0.8


def test_images_without_models_on_both_sides_are_not_judged() -> None:
    values, member, labels = models_of(1, 9, [8, 8], effect=0.2)
    member[:, 0], member[:, 9] = True, False
    member[:3, 1], member[3:, 1] = True, False
    found = unpaired_exposure(values, member, labels)
    columns = found.per_sample
    assert columns["exposure"][[0, 9]].isnan().all() and columns["exposure"][1].isfinite()
    assert columns["exposure_q"][[0, 1, 9]].isnan().all()
    assert not columns["exposed"][[0, 1, 9]].any()
    everyone = np.ones((9, 16), dtype=bool)
    none = unpaired_exposure(values, everyone, labels)
    assert {s.value for s in none.summary.values()} == {None}
    assert "models with and without it" in str(none.summary["exposure_mean"].reason)


def test_refuses_bad_input() -> None:
    values, member, labels = models_of(1, 5, [8, 8])
    with pytest.raises(DesignError, match="at least 4, found 3"):
        unpaired_exposure(values[:3], member[:3], labels)
    with pytest.raises(InputError, match="membership"):
        unpaired_exposure(values, torch.rand(5, 16), labels)
