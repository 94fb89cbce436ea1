"""The table of what an audit tried and what it did not."""

from __future__ import annotations

from typing import Any

import pytest

from inversight.report import model_card, render
from inversight.report.attempts import NEW_AUDIT, attempts, not_tried, training_of
from tests.report.examples import plain_data, read_example
from tests.report.exposure_examples import SHADOWS
from tests.report.parsers import Page, assert_texts


def audited(**changes: Any) -> dict[str, Any]:
    return {**read_example("attacked_run.json"), **changes}


def test_lists_every_attack_and_every_access_without_one() -> None:
    rows = attempts(audited(queries={"plug-and-play": 12345}))
    assert [(row["access"], row["attack"]) for row in rows] == [
        ("white-box", "plug-and-play"), ("scores", ""), ("label", "own.module:Mine"),
    ]  # fmt: skip
    assert rows[0]["budget"] == "pool 500, steps 40, 12,345 images sent to the target"
    assert rows[2]["budget"] == "queries 9"
    page = Page(render(plain_data(attempts=rows, training=training_of(audited()))))
    assert_texts(page.text(), ["scores a score for each class not tried", *NEW_AUDIT])
    assert page.text().count("not tried") == 1
    assert model_card(audited(), {})["inversight"]["not_tried"] == ["scores"]


def test_names_the_budgets_that_attacks_were_repeated_with() -> None:
    found = audited(settings={"attack": ["plug-and-play"], "budget": [100, 10000]})
    assert attempts(found)[0]["budget"] == "again within 100 and 10,000 images sent"


def test_does_not_call_an_access_untried_if_that_of_an_attack_is_not_known() -> None:
    given = {"against": {"private": "/home"}, "reconstructions": ["a"], "settings": {}}
    assert [(r["access"], r["attack"]) for r in attempts(given)] == [
        ("unknown", "unknown: 1 folder(s) given")
    ]
    assert not_tried([{"access": "mine"}]) == [] and attempts({}) == []
    assert "What was tried" not in render(plain_data())


TRAINING = {"architecture": "resnet", "epochs": 5, "patience": 60}
PRIVATE = {"trained": {"epsilon": 7.99, "delta": 1e-5, "loss": 0.1}}


@pytest.mark.parametrize(
    ("manifest", "recipe", "privacy"),
    [
        (
            {"settings": {"target": None, "target_training": TRAINING}, "shadows": SHADOWS},
            "trained by this audit, architecture resnet, epochs 5",
            "none that this run knows of",
        ),
        ({"settings": {"target": "m:net"}, "target": PRIVATE}, "not known: the target was given",
         "epsilon 7.99, delta 1.00e-05"),
        ({"settings": {"target": "m:net"}, "shadows": {**SHADOWS, "recipe": "m:train"}},
         "of the shadow models: m:train; whether the given target was trained by it is not known",
         "none that this run knows of"),
        ({"against": {}, "settings": {}}, "not known: existing reconstructions were scored",
         "none that this run knows of"),
    ],
)  # fmt: skip
def test_says_what_is_known_of_the_training(
    manifest: dict[str, Any], recipe: str, privacy: str
) -> None:
    assert training_of(manifest) == {"Recipe": recipe, "Differential privacy": privacy}
