"""Objectives equal their formulas, written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from inversight.attacks.objectives import (
    OBJECTIVES,
    cross_entropy,
    entropy,
    logit,
    max_margin,
    poincare,
)

LABELS = torch.tensor([3, 2, 1, 0, 3, 2])


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_entropy_equals_that_of_a_categorical(logits: Tensor) -> None:
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy(logits), expected)
    assert float(entropy(torch.zeros(1, 5))) == pytest.approx(math.log(5))
    assert float(entropy(torch.tensor([[200.0, 0.0, 0.0]]))) == pytest.approx(0.0, abs=1e-6)


def test_cross_entropy_is_the_negative_log_probability(logits: Tensor) -> None:
    expected = -torch.distributions.Categorical(logits=logits).log_prob(LABELS)
    torch.testing.assert_close(cross_entropy(logits, LABELS), expected)


def test_margin_and_logit_by_hand(logits: Tensor) -> None:
    margins, negative = max_margin(logits, LABELS), logit(logits, LABELS)
    for i, (row, label) in enumerate(zip(logits.tolist(), LABELS.tolist(), strict=True)):
        others = [v for k, v in enumerate(row) if k != label]
        assert float(margins[i]) == pytest.approx(max(others) - row[label])
        assert float(negative[i]) == pytest.approx(-row[label])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_decreases_with_the_labels_logit(name: str, logits: Tensor) -> None:
    x = logits.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(OBJECTIVES[name](x, LABELS).sum(), x)  # type: ignore[index]
    assert bool(gradient.isfinite().all())
    if name != "poincare":  # its logits are normalised, so that this one also scales the others
        assert bool((gradient.gather(1, LABELS[:, None]) < 0).all())


def poincare_by_hand(row: list[float], label: int, xi: float) -> float:
    total = sum(abs(v) for v in row)
    u = [v / total for v in row]
    v = [max(0.0, (1.0 if i == label else 0.0) - xi) for i in range(len(row))]
    gap = sum((a - b) ** 2 for a, b in zip(u, v, strict=True))
    u2, v2 = sum(a * a for a in u), sum(b * b for b in v)
    return math.acosh(1.0 + 2.0 * gap / ((1.0 - u2) * (1.0 - v2)))


def test_poincare_by_hand(logits: Tensor) -> None:
    found = poincare(logits, LABELS).tolist()
    for row, label, value in zip(logits.tolist(), LABELS.tolist(), found, strict=True):
        assert value == pytest.approx(poincare_by_hand(row, label, 1e-4))


def test_poincare_decreases_towards_the_label_and_stays_finite() -> None:
    away = torch.tensor([[1.0, 1.0, 1.0], [5.0, 1.0, 1.0], [1e6, 0.0, 0.0]], requires_grad=True)
    loss = poincare(away, torch.zeros(3, dtype=torch.int64))
    far, near, exact = loss.tolist()
    assert far > near > exact >= 0.0
    (gradient,) = torch.autograd.grad(loss.sum(), away)
    assert bool(gradient.isfinite().all())
