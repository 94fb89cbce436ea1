from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from inversight.pipeline.report import write_report
from inversight.report import load_report_data, model_card, render_card
from inversight.report.card import escaped
from tests.report.examples import HOSTILE, manifest, metrics_of, samples, write_run

NASTY = (
    *HOSTILE,
    "a|b",
    "`rm -rf`",
    "x\n\n# Heading\n- item",
    "[click](javascript:alert(1))",
    "![pixel](https://example.invalid/x.png)",
    "<https://example.invalid>",
    "https://example.invalid www.example.invalid",
    "*bold* _soft_ ~~gone~~ $x$ @someone #12 \\|",
    "&lt;script&gt;&#60;",
)


def found(**changes: Any) -> dict[str, dict[str, Any]]:
    return {**metrics_of(gap=0.4, p=0.012, count=3), **changes}


def audited(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "access": {"plug-and-play": "white-box", "Mine": "label"},
        "arm": "entropy",
        "settings": {
            "target": "timm:resnet18?weights=/home/me/secret.safetensors",
            "prior": {"class": "style", "steps": 100},
            "adaptation": {"steps": 7, "scale": "relative"},
            "attack": [
                {"class": "plug-and-play", "pool": 500, "steps": 40, "crop_flip": True},
                {"class": "own.module:Mine", "queries": 9, "latents": "/home/me/secret.npy"},
            ],
        },
        "inputs": {
            "private": {"path": "/home/me/people", "images": 30, "classes": 5},
            "holdout": {"path": "/home/me/others", "images": 40, "classes": 5},
            "public": {"path": "/home/me/public", "images": 50, "classes": 9},
        },
        "split": "private: 30 images in 5 classes (/home/me/people)",
    }
    return manifest(**{**values, **changes})


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


def test_it_states_attack_access_budget_data_distance_result_and_origin() -> None:
    text, _ = shown(render_card(model_card(audited(), found())))
    for part in (
        "inversight 0.1.0, 2026-01-02T03:04:05Z, seed 3",
        "timm:resnet18",
        "plug-and-play (access: white-box, pool 500, steps 40)",
        "own.module:Mine (access: label, queries 9)",
        "adaptation entropy, steps 100, adaptation steps 7, preset quick",
        "private: 30 images of 5 classes that the model was trained on; holdout: 40 images",
        "0.1 (3 of 30 images)",
        "p value 0.012",
        "-1 to 1.5",
        "3.21",
        "2.5 to 4.1",
        "on features public",
        "none is flagged unless 3 or more stand out together",
        "absence of evidence",
        "for these attacks, with this access, prior, budget and seed",
    ):
        assert part in text, part
    rows = [
        line for line in render_card(model_card(audited(), found())).splitlines() if "|" in line
    ]
    assert [row.split(" | ")[0] for row in rows[-5:]] == [
        "| Flagged",
        "| Leakage gap",
        "| DDCS, best",
        "| Covered",
        "| Coverage",
    ]


@pytest.mark.parametrize("images", ["none", "blurred", "full"])
@pytest.mark.parametrize("hash_ids", [False, True])
def test_no_name_of_an_image_a_class_or_a_file_is_in_it(
    tmp_path: Any, images: str, hash_ids: bool
) -> None:
    settings = {**audited()["settings"], "hash_ids": hash_ids, "images": images}
    table = samples().assign(label="Ann Example")
    table["id"] = "Ann Example/" + table["id"]
    values = audited(settings=settings, images=images, warnings=["/home/me/people is odd"])
    run = write_run(tmp_path / "run", table, found(), **values)
    assert write_report(run, load_report_data(run)) == run / "report.html"
    written = (run / "model-card.md").read_text() + (run / "model-card.json").read_text()
    assert "Ann Example" in (run / "report.html").read_text()
    for secret in ("Ann", ".png", "/home", "secret", "people", str(tmp_path)):
        assert secret not in written
    assert "| Warnings | 1; see the report of the run |" in written


def test_a_file_as_target_or_prior_is_not_named() -> None:
    settings = {"target": "/models/ann.pt", "prior": "/priors/ann", "attack": ["plug-and-play"]}
    text = render_card(model_card(audited(settings=settings), found()))
    assert "ann" not in text and "classifier from a file" in text and "existing one" in text
    own = {**settings, "target": "my.models:ann_net?weights=/x/ann.safetensors"}
    assert (
        model_card(audited(settings=own), found())["model-index"][0]["name"] == "my.models:ann_net"
    )


def test_the_mapping_is_json_and_yaml_and_reads_as_a_model_index() -> None:
    card = model_card(audited(), found())
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


def test_what_was_not_computed_has_its_reason_and_no_value() -> None:
    none = {"value": None, "low": None, "high": None, "reason": "there is no holdout"}
    card = model_card(audited(inputs={}), found(flagged=none, leakage_gap=none))
    assert card["inversight"]["not_computed"] == dict.fromkeys(
        ["flagged", "leakage_gap"], "there is no holdout"
    )
    types = [m["type"] for m in card["model-index"][0]["results"][0]["metrics"]]
    assert types == ["ddcs_best", "covered", "coverage"]
    text = render_card(card)
    assert "| Flagged | not computed | | | there is no holdout |" in text
    assert "There was no holdout" in text and "no holdout" in card["inversight"]["data"]["split"]


def test_the_gap_to_the_control_is_optional() -> None:
    gap = {"value": 1.5, "low": 0.5, "high": 2.5, "attack": 3.0, "control": 1.5}
    text = render_card(model_card(audited(inputs={}), found(control_gap=gap)))
    assert "| Gap to the control | 1.5 | 0.5 to 2.5 | higher |" in text
    none = {"value": None, "reason": "there is a holdout"}
    card = model_card(audited(), found(control_gap=none))
    assert card["inversight"]["not_computed"] == {} and "control" not in render_card(card)


def test_scores_of_given_folders_say_that_the_attack_is_unknown() -> None:
    values = manifest(against={"private": "/home/me"}, reconstructions=["/home/me/a", "/home/me/b"])
    values.pop("settings")
    card = model_card(values, found())
    text = render_card(card)
    assert "unknown: 2 folder(s) given" in text and "/home" not in json.dumps(card)
    assert "trained by the audit itself" not in text


def test_the_digits_are_named_with_the_images_that_were_used() -> None:
    digits = {"private": {"path": "embedded digits", "images": 40, "classes": 4}}
    text = render_card(model_card(audited(inputs=digits, split="all ten /home/me"), found()))
    assert "handwritten digits of scikit-learn; private: 40 images of 4 classes" in text
    assert "all ten" not in text


def test_a_target_that_the_audit_trained_is_a_limit() -> None:
    text = render_card(model_card(audited(settings={"target": None}), found()))
    assert "trained by the audit itself" in text


def test_the_barest_run_still_gives_a_card() -> None:
    card = model_card({}, {})
    text = render_card(card)
    assert "not computed" in text and "None" not in text
    assert set(card["inversight"]["not_computed"]) == {
        "flagged", "leakage_gap", "ddcs_best", "covered", "coverage",
    }  # fmt: skip


@pytest.mark.parametrize("name", NASTY)
def test_hostile_names_are_text_and_nothing_else(name: str) -> None:
    elements = [
        "heading",
        "paragraph",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "bullet_list",
        "list_item",
    ]
    plain = {f"{element}_{end}" for element in elements for end in ("open", "close")}
    plain |= {"inline", "text", "text_special"}
    texts = ("version", "created", "seed", "embedding", "features", "arm", "preset")
    hostile = audited(
        **dict.fromkeys(texts, name),
        access={name: name},
        settings={"target": None, "attack": [{"class": name, name: 1}], "prior": {"class": name}},
    )
    bad = {"value": None, "reason": name}
    text = render_card(
        model_card(hostile, found(covered=bad, coverage={"value": 1.0, "features": name}))
    )
    seen, kinds = shown(text)
    assert kinds <= plain
    assert name.replace("\n", "\\n") in seen
    calm = render_card(model_card(audited(settings={"attack": ["x"]}), found(covered=bad)))
    assert text.count("\n") == calm.count("\n")
    for cells in (line.count("|") for line in text.splitlines() if line.startswith("| ")):
        assert cells in (3, 6)
    assert "://" not in text and "www." not in text and "@" not in text


@given(st.text(max_size=40))
def test_any_text_comes_back_as_it_was(text: str) -> None:
    line = escaped(text)
    assert "\n" not in line and "|" not in line and "`" not in line and "<" not in line
    seen, kinds = shown(f"x {line} x")
    assert kinds <= {"paragraph_open", "paragraph_close", "inline", "text", "text_special"}
    assert all(c in seen for c in text if c.isprintable())
