"""One scale for all classes: what it does not depend on, and what it equals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from inversight.risk.class_scales import class_scales
from tests.risk.examples import normal_score


def drawn(seed: int, n: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=n))


def test_scale_of_a_single_class_comes_from_its_own_images() -> None:
    y = drawn(0, 6)
    measure = class_scales({0: y})[0]
    others = torch.stack([torch.cat([y[:k], y[k + 1 :]]) for k in range(6)])
    torch.testing.assert_close(measure.centre, others.mean(1))
    torch.testing.assert_close(measure.scale, others.std(1) * (1 + 1 / 5) ** 0.5)
    assert measure.freedom == 4


def test_scores_equal_a_loop() -> None:
    known = {0: drawn(0, 3), 1: 2 * drawn(1, 5) + 1, 4: 0.1 * drawn(2, 9)}
    for label, measure in class_scales(known).items():
        rest = [y for c, y in known.items() if c != label]
        pooled = sum(float(y.var()) * (len(y) - 1) for y in rest) / sum(len(y) - 1 for y in rest)
        y = known[label].tolist()
        found = measure.scores(torch.tensor([[0.3], [-2.0]], dtype=torch.float64))
        for k in range(len(y)):
            for row, value in enumerate((0.3, -2.0)):
                expected = normal_score(value, y[:k] + y[k + 1 :], pooled, 2.0)
                assert float(found[row, k]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [4, 6, 20])
def test_scores_are_normal_scores_of_students_t(n: int) -> None:
    """Wallace's approximation against the quantiles themselves."""
    measure = class_scales({0: drawn(n, n)})[0]
    away = torch.linspace(-8, 8, 33, dtype=torch.float64)[:, None]
    found = measure.scores(measure.centre + away * measure.scale)[:, 0]
    expected = stats.norm.ppf(stats.t.cdf(away[:, 0].numpy(), measure.freedom))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0.03, atol=0.01)


def test_shifting_one_class_and_scaling_all_change_no_score() -> None:
    known = {0: drawn(0, 4), 1: drawn(1, 7)}
    moved = {0: 3 * (known[0] + 5), 1: 3 * (known[1] - 2)}
    for label, shift in ((0, 5), (1, -2)):
        a = class_scales(known)[label].scores(known[label])
        b = class_scales(moved)[label].scores(3 * (known[label] + shift))
        torch.testing.assert_close(a, b)


def test_class_with_many_images_has_its_own_spread() -> None:
    known = {0: drawn(0, 500), 1: 3 * drawn(1, 500)}
    for label, measure in class_scales(known).items():
        assert float(measure.scores(known[label]).std()) == pytest.approx(1.0, abs=0.05), label


@pytest.mark.parametrize(
    ("sizes", "scaled"), [([1, 2], []), ([2], []), ([3], [0]), ([1, 2, 3], [1, 2])]
)
def test_classes_of_too_few_images_have_no_scale(sizes: list[int], scaled: list[int]) -> None:
    assert list(class_scales({i: drawn(i, n) for i, n in enumerate(sizes)})) == scaled


def test_equal_images_have_infinite_scores_for_all_others() -> None:
    measure = class_scales({0: torch.ones(4, dtype=torch.float64)})[0]
    found = measure.scores(torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64))
    assert found[:, 0].tolist() == [-float("inf"), 0.0, float("inf")]
