from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from inversight.pipeline.report import report_stage
from inversight.report import model_card, render_card
from inversight.report.card import escaped
from inversight.report.words import EXPOSURES
from tests.report.examples import HOSTILE, metrics_of, read_example, samples, write_run
from tests.report.exposure_examples import SHADOWS, exposure_metrics
from tests.report.parsers import assert_texts

NASTY = (
    *HOSTILE, "a|b", "`rm -rf`", "x\n\n# Heading\n- item", "[click](javascript:alert(1))",
    "![pixel](https://example.invalid/x.png)", "<https://example.invalid>",
    "https://example.invalid www.example.invalid",
    "*bold* _soft_ ~~gone~~ $x$ @someone #12 \\|", "&lt;script&gt;&#60;",
)  # fmt: skip

PLAIN = re.compile(
    "(heading|paragraph|table|thead|tbody|tr|th|td|bullet_list|list_item)_(open|close)"
    "|inline|text(_special)?"
)
"""Kinds of Markdown tokens that can neither run nor load anything."""


def measured(**changes: Any) -> dict[str, dict[str, Any]]:
    return {**metrics_of(gap=0.4, p=0.012, count=3), **changes}


def audited(**changes: Any) -> dict[str, Any]:
    return {**read_example("attacked_run.json"), **changes}


def card_text(found: dict[str, Any] | None = None, **changes: Any) -> str:
    return render_card(model_card(audited(**changes), found or measured()))


def shown(text: str) -> tuple[str, set[str]]:
    """What a reader sees of Markdown, and the kinds of its tokens."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    kinds, seen = set(), []
    for token in parser.parse(text):
        kinds.add(token.type)
        for child in token.children or ():
            kinds.add(child.type)
            seen.append(child.content)
    return " ".join(seen), kinds


NO_HOLDOUT = {"value": None, "low": None, "high": None, "reason": "there is no holdout"}
GAP = {"value": 1.5, "low": 0.5, "high": 2.5, "attack": 3.0, "control": 1.5}
NO_GAP = {"value": None, "reason": "there is a holdout"}
DIGITS = {"private": {"path": "embedded digits", "images": 40, "classes": 4}}
FILES = {"target": "/models/ann.pt", "prior": "/priors/ann", "attack": ["plug-and-play"]}
FACTORY = {**FILES, "target": "my.models:net?weights=/x/ann.safetensors"}
FOLDERS = {"against": {"private": "/home"}, "reconstructions": ["/home", "/x"], "settings": {}}
BASE = [
    "inversight 0.1.0, 2026-01-02T03:04:05Z, seed 3", "timm:resnet18",
    "plug-and-play (access: white-box, pool 500, steps 40)",
    "own.module:Mine (access: label, queries 9)",
    "adaptation entropy, steps 100, adaptation steps 7, preset quick",
    "private: 30 images of 5 classes that the model was trained on; holdout: 40 images",
    "0.1 (3 of 30 images)", "p value 0.012", "-1 to 1.5", "3.21", "2.5 to 4.1", "on features public",
    "none is flagged unless 3 or more stand out together", "absence of evidence",
    "for these attacks, with this access, prior, budget and seed",
]  # fmt: skip


@pytest.mark.parametrize(
    ("found", "changes", "stated", "unstated"),
    [
        ({}, {}, BASE, []),
        ({}, {"settings": FILES}, ["classifier from a file", "existing one"], ["ann"]),
        (
            {"flagged": NO_HOLDOUT},
            {"inputs": {}},
            ["| Flagged | not computed | | | there is no holdout |", "There was no holdout"],
            [],
        ),
        ({"control_gap": GAP}, {}, ["| Gap to the control | 1.5 | 0.5 to 2.5 | higher |"], []),
        ({"control_gap": NO_GAP}, {}, [], ["control"]),
        (
            {},
            {"inputs": DIGITS, "split": "all ten /home/me"},
            ["handwritten digits of scikit-learn; private: 40 images of 4 classes"],
            ["all ten"],
        ),
        (
            {"coverage": {"value": 0.7, "caveat": "9 [images](x) alone"}},
            {"target_access": "scores"},
            ["| Access | scores |", "9 &#91;images&#93;(x) alone."],
            [],
        ),
        ({}, {"settings": {"target": "endpoint:http://h/p"}}, ["| Model | a service |"], ["//h"]),
        ({}, {"settings": FACTORY}, ["| Model | my.models:net |"], ["ann"]),
        ({}, {"settings": {"target": None}}, ["trained by the audit itself"], []),
        ({}, FOLDERS, ["unknown: 2 folder"], ["/home", "&#47;home", "trained by the audit itself"]),
    ],
    ids=[
        "base", "files", "no holdout", "control", "no control", "digits", "caveat", "service", "factory",
        "trained target", "given folders",
    ],
)  # fmt: skip
def test_card_states(found: Any, changes: Any, stated: list[str], unstated: list[str]) -> None:
    assert_texts(card_text(measured(**found), **changes), stated, unstated)


@pytest.mark.parametrize("images", ["none", "blurred", "full"])
@pytest.mark.parametrize("hash_ids", [False, True])
def test_names_no_image_class_or_file(tmp_path: Path, images: str, hash_ids: bool) -> None:
    settings = {**audited()["settings"], "hash_ids": hash_ids, "images": images}
    table = samples().assign(label="Ann Example", id=lambda t: "Ann Example/" + t["id"])
    values = audited(settings=settings, images=images, warnings=["/home/me/people is odd"])
    run = write_run(tmp_path / "run", table, measured(), **values)
    report_stage(run)
    written = (run / "model-card.md").read_text() + (run / "model-card.json").read_text()
    assert "Ann Example" in (run / "report.html").read_text()
    for secret in ("Ann", ".png", "/home", "secret", "people", str(tmp_path)):
        assert secret not in written
    assert "| Warnings | 1; see the report of the run |" in written


def test_card_is_json_and_yaml_and_reads_as_a_model_index() -> None:
    card = model_card(audited(), measured())
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    assert yaml.safe_load(yaml.safe_dump(card)) == card
    name, results = model_index_to_eval_results(card["model-index"])
    assert name == "timm:resnet18"
    by_type = {r.metric_type: r for r in results}
    assert list(by_type) == ["flagged", "leakage_gap", "ddcs_best", "covered", "coverage"]
    assert by_type["ddcs_best"].metric_value == 3.21
    assert by_type["ddcs_best"].metric_args["low"] == 2.5
    assert by_type["flagged"].metric_args["count"] == 3
    assert {r.task_type for r in results} == {"image-classification"}


def test_missing_measures_have_a_reason_and_no_value() -> None:
    found = measured(flagged=NO_HOLDOUT, leakage_gap=NO_HOLDOUT)
    card = model_card(audited(inputs={}), found)
    reasons = dict.fromkeys(["flagged", "leakage_gap"], "there is no holdout")
    assert card["inversight"]["not_computed"] == reasons
    types = [m["type"] for m in card["model-index"][0]["results"][0]["metrics"]]
    assert types == ["ddcs_best", "covered", "coverage"]
    assert "no holdout" in card["inversight"]["data"]["split"]
    card = model_card(audited(), measured(control_gap=NO_GAP))
    assert card["inversight"]["not_computed"] == {}


RECIPE = {**SHADOWS, "recipe": "timm:resnet18?weights=/home/ann/secret.safetensors"}
FILE_RECIPE = {**SHADOWS, "recipe": "/home/ann/train.py", "target_images": None}


@pytest.mark.parametrize(
    ("shadows", "stated"),
    [
        (
            SHADOWS,
            "| Shadow models | 24, recipe: the audit's own, each trained on 200 images (the",
        ),
        (RECIPE, "| Shadow models | 24, recipe: timm:resnet18, each trained on 200 images"),
        (FILE_RECIPE, "| Shadow models | 24, recipe: named, each trained on 200 images |"),
    ],
)
def test_card_of_a_run_with_shadow_models(shadows: dict[str, Any], stated: str) -> None:
    found = measured(**exposure_metrics(images=30))
    text = card_text(found, shadows=shadows)
    expected = [
        stated, "(exposure of the set 1.06, p = 0.0001, randomisation test over 24 shadow models)",
        "| Exposed | 0.3 (9 of 30 images) |", "fdr 0.1; shadow models 24; detectable 1.35",
        "| Exposure of the set | 1.06 | 1.04 to 1.09 | higher |", "p value 0.0001",
        "Exposure is that of models trained by the recipe", "Not tried | access: scores |",
    ]  # fmt: skip
    assert_texts(text, expected, ["/home", "secret", "ann", "train.py"])
    card = model_card(audited(shadows=shadows), found)
    _, results = model_index_to_eval_results(card["model-index"])
    assert [r.metric_type for r in results][:2] == ["exposed", "exposure_mean"]
    assert json.loads(json.dumps(card, allow_nan=False)) == card


def test_card_names_exposure_only_if_the_run_knows_of_it() -> None:
    assert "xpos" not in card_text()
    reason = "needs shadow models: give --shadows K"
    text = card_text(measured(**{key: {"value": None, "reason": reason} for key in EXPOSURES}))
    assert_texts(text, [f"| Exposed | not computed | | | {reason} |"], ["Shadow models"])


def test_empty_run_has_a_card() -> None:
    card = model_card({}, {})
    text = render_card(card)
    assert "not computed" in text and "None" not in text
    missing = {"flagged", "leakage_gap", "ddcs_best", "covered", "coverage"}
    assert set(card["inversight"]["not_computed"]) == missing


@pytest.mark.parametrize("name", NASTY)
def test_hostile_names_are_text_and_nothing_else(name: str) -> None:
    texts = ("version", "created", "seed", "embedding", "features", "arm", "preset")
    bad = {"value": None, "reason": name}
    text = card_text(
        measured(covered=bad, coverage={"value": 1.0, "features": name}),
        **dict.fromkeys(texts, name),
        access={name: name},
        settings={"target": None, "attack": [{"class": name, name: 1}], "prior": {"class": name}},
    )
    seen, kinds = shown(text)
    assert all(PLAIN.fullmatch(kind) for kind in kinds)
    assert name.replace("\n", "\\n") in seen
    calm = card_text(measured(covered=bad), settings={"attack": ["x"]})
    assert text.count("\n") == calm.count("\n")
    for cells in (line.count("|") for line in text.splitlines() if line.startswith("| ")):
        assert cells in (3, 6)
    assert "://" not in text and "www." not in text and "@" not in text


@given(st.text(max_size=40))
def test_escaped_text_is_shown_unchanged(text: str) -> None:
    line = escaped(text)
    assert "\n" not in line and "|" not in line and "`" not in line and "<" not in line
    seen, kinds = shown(f"x {line} x")
    assert kinds <= {"paragraph_open", "paragraph_close", "inline", "text", "text_special"}
    assert all(c in seen for c in text if c.isprintable())
