from __future__ import annotations

import json
from typing import Any

import pytest

from inversight.scores import ScoreResult, Summary


def test_json_has_the_three_numbers_first_and_only_what_is_set() -> None:
    assert list(Summary(0.5).as_json().items()) == [("value", 0.5), ("low", None), ("high", None)]
    full = Summary(0.5, 0.25, 0.75, features="inception", extra={"k": 3, "value": 9}).as_json()
    expected = {"value": 0.5, "low": 0.25, "high": 0.75, "features": "inception", "k": 3}
    assert json.loads(json.dumps(full)) == expected  # extra does not replace the value
    assert Summary(None, reason="no class").as_json()["reason"] == "no class"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"value": None}, "reason"),
        ({"value": 1.0, "reason": "but it has one"}, "reason"),
        *(({"value": x}, "finite") for x in (float("nan"), float("inf"))),
        *(({"value": 0.0, "low": 0.0, "high": x}, "finite") for x in (float("nan"), float("inf"))),
    ],
)
def test_rejects_inconsistent_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Summary(**values)


def test_on_features_names_them_and_keeps_the_original() -> None:
    before = ScoreResult("lower", "private", {"a": Summary(1.0)})
    assert before.on_features("pixel").summary["a"] == Summary(1.0, features="pixel")
    assert before.summary["a"].features is None
