from __future__ import annotations

import json

import pytest
import torch

from inversight.scores import ScoreResult, Summary


def test_summary_writes_its_three_numbers_first_and_only_what_is_set() -> None:
    assert list(Summary(0.5).as_json().items()) == [("value", 0.5), ("low", None), ("high", None)]
    full = Summary(0.5, 0.25, 0.75, features="inception", extra={"k": 3}).as_json()
    assert json.loads(json.dumps(full)) == {
        "value": 0.5,
        "low": 0.25,
        "high": 0.75,
        "features": "inception",
        "k": 3,
    }


def test_summary_without_a_value_says_why() -> None:
    assert Summary(None, reason="no class").as_json()["reason"] == "no class"
    with pytest.raises(ValueError, match="reason"):
        Summary(None)
    with pytest.raises(ValueError, match="reason"):
        Summary(1.0, reason="but it has one")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_summary_refuses_what_json_cannot_hold(number: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Summary(number)
    with pytest.raises(ValueError, match="finite"):
        Summary(0.0, 0.0, number)


def test_extra_cannot_hide_the_value() -> None:
    assert Summary(0.5, extra={"value": 9}).as_json()["value"] == 0.5


def test_on_features_names_them_and_leaves_the_rest() -> None:
    before = ScoreResult("lower", "private", {"a": Summary(1.0)}, {"a": torch.ones(2)})
    after = before.on_features("pixel")
    assert after.summary["a"].features == "pixel"
    assert after.summary["a"].value == 1.0
    assert before.summary["a"].features is None
