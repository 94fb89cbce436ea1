"""A given model against shadow models: z and AUC by their definitions, p right without effects."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from inversight.core.errors import InputError
from inversight.risk.design import draw_design
from inversight.risk.given import given_model
from tests.reference.exposure_loop import centred, prior
from tests.risk.test_exposure import Floats, experiment, some_private


def example(seed: int, effect: Floats | float = 0.0, models: int = 12) -> tuple[object, ...]:
    """Return distances, membership, labels, a given model's distances (one more row), and private images."""
    values, member, labels = experiment(seed, models + 2, [10, 10, 10])
    private = draw_design(labels, pairs=1, seed=seed + 1)[0].numpy()
    given = values[models] + effect * member[models].numpy() - effect * private
    return values[:models], member[:models], labels, given, private


def test_z_and_auc_by_their_definitions() -> None:
    values, member, labels = experiment(0, 9 + 1, [5, 7], effect=0.1)
    given, private = values.mean(0) - 0.05 * some_private(12), some_private(12)
    found = given_model(values, member, labels, given, private)

    def z(own: Floats, rows: list[int]) -> list[float]:
        every = np.vstack([values[rows], own])
        label = labels.tolist()
        facts = []
        for i in range(12):
            c = np.array([centred(every, label, k, i) for k in range(len(rows) + 1)])
            inside = member[rows][:, i].numpy()
            a, b = c[:-1][inside], c[:-1][~inside]
            squares = ((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()
            facts.append((b.mean() - c[-1], squares / (len(rows) - 2), len(rows) - 2))
        s0, d0 = prior([f[1] for f in facts], [f[2] for f in facts])
        return [
            away / math.sqrt(s0 if math.isinf(d0) else (d0 * s0 + d * s) / (d0 + d))
            for away, s, d in facts
        ]

    def area(z: list[float]) -> float:
        x = np.array(z)
        return float(mannwhitneyu(x[private], x[~private]).statistic) / (6 * 6)

    expected = z(given, list(range(10)))
    np.testing.assert_allclose(found.z, expected)
    assert found.auc == pytest.approx(area(expected))
    shadow = [area(z(values[k], [r for r in range(10) if r // 2 != k // 2])) for k in range(10)]
    np.testing.assert_allclose(found.shadow_aucs, shadow)
    assert found.p_value == pytest.approx((1 + sum(a >= area(expected) for a in shadow)) / 11)


def test_without_effects_p_values_hold_their_level() -> None:
    p = np.array([float(given_model(*example(seed)).p_value or 0) for seed in range(150)])  # type: ignore[arg-type]
    for level in (1 / 13, 3 / 13, 6 / 13):
        assert abs((p <= level + 1e-9).mean() - level) < 3.5 * math.sqrt(level * (1 - level) / 150)


def test_effects_are_found() -> None:
    found = [given_model(*example(seed, effect=0.8)) for seed in range(10)]  # type: ignore[arg-type]
    assert all(one.p_value == pytest.approx(1 / 13) for one in found)
    assert np.mean([one.auc or 0 for one in found]) > 0.8


def test_classes_without_reconstructions_are_left_out() -> None:
    values, member, labels, given, private = example(1)
    missing = np.where(np.asarray(labels) == 1, np.nan, given)  # type: ignore[call-overload]
    found = given_model(values, member, labels, missing, private)  # type: ignore[arg-type]
    assert found.z[10:20].isnan().all() and found.z[:10].isfinite().all()
    assert found.auc is not None and 0 < found.auc < 1


def test_too_few_models_or_no_holdout_have_a_reason() -> None:
    values, member, labels, given, private = example(1, models=4)
    found = given_model(values, member, labels, given, private)  # type: ignore[arg-type]
    assert (found.auc, found.p_value) == (None, None) and "at least 6" in str(found.reason)
    more = example(1)
    none = given_model(*more[:4], np.ones(30, dtype=bool))  # type: ignore[arg-type]
    assert none.auc is None and "holdout" in str(none.reason)
    with pytest.raises(InputError, match="given: expected 30 finite"):
        given_model(*more[:3], np.zeros(3), more[4])  # type: ignore[arg-type]
