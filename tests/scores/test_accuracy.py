from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import top_k_accuracy_score
from torch import Tensor

from inversight.core.errors import InputError
from inversight.scores import accuracy
from tests.draws import normal, rng
from tests.scores.build import interval, value


def test_equals_scikit_learn() -> None:
    given, labels = normal(200, 12), torch.arange(200) % 12
    given[torch.arange(200), labels] += 1.0
    result = accuracy(given, labels)
    for key, k in (("accuracy_top1", 1), ("accuracy_top5", 5)):
        expected = top_k_accuracy_score(labels.numpy(), given.numpy(), k=k)
        assert value(result, key) == pytest.approx(expected)
    assert (result.direction, result.rows) == ("higher", "reconstructions")


@pytest.mark.parametrize("right", [0, 1, 7, 20])
def test_interval_is_wilsons(right: int) -> None:
    given, labels = torch.eye(6)[torch.arange(20) % 6], torch.arange(20) % 6
    labels[right:] = (labels[right:] + 1) % 6
    summary = accuracy(given, labels).summary["accuracy_top1"]
    expected = binomtest(right, 20).proportion_ci(0.95, method="wilson")
    assert value(summary) == right / 20
    assert interval(summary) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_constant_evaluator_is_right_for_one_class_only() -> None:
    result = accuracy(torch.zeros(10, 10), torch.arange(10))
    assert (value(result, "accuracy_top1"), value(result, "accuracy_top5")) == (0.1, 0.5)


def test_top_five_of_five_classes_has_no_value() -> None:
    result = accuracy(normal(8, 5), torch.arange(8) % 5)
    assert result.summary["accuracy_top5"].value is None
    assert "5 classes" in str(result.summary["accuracy_top5"].reason)
    assert list(result.per_sample) == ["top1"]


def test_does_not_depend_on_row_order_or_batches() -> None:
    given, labels, order = normal(30, 7), torch.arange(30) % 7, torch.randperm(30, generator=rng())
    whole, other = accuracy(given, labels), accuracy(given[order], labels[order])
    assert other.summary == whole.summary
    assert torch.equal(other.per_sample["top5"], whole.per_sample["top5"][order])
    parts = map(accuracy, given.split(8), labels.split(8))
    top1 = torch.cat([part.per_sample["top1"] for part in parts])
    assert torch.equal(top1, whole.per_sample["top1"])


@pytest.mark.parametrize(
    ("given", "labels", "message"),
    [
        (torch.empty(0, 3), torch.empty(0, dtype=torch.int64), "at least one row"),
        (normal(3), torch.zeros(3, dtype=torch.int64), r"shape \(M, K\)"),
        (normal(4, 3), torch.zeros(3, dtype=torch.int64), "4 integers"),
        (normal(4, 3), torch.zeros(4), "type torch.float32"),
        (normal(4, 3), torch.tensor([0, 1, 3, 0]), "classes 0 to 2.*found 3"),
        (normal(4, 3), torch.tensor([0, -1, 2, 0]), "found -1"),
        (normal(4, 3) / torch.tensor([[1.0], [0.0], [1.0], [1.0]]), torch.arange(4) % 3, "row 1"),
    ],
)
def test_rejects_unusable_input(given: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        accuracy(given, labels)
    assert "\n" not in str(caught.value)
