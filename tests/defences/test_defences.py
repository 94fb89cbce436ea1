"""What holds for every defence: protocol, budget, repetition, files."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inversight.core.config import build
from inversight.core.errors import ConfigError, InputError
from inversight.core.seeding import generator
from inversight.defences import Defence
from inversight.models.networks import load_classifier, save_classifier
from inversight.models.target import Access, target_of
from inversight.settings import DEFENCES
from tests.defences.problem import (
    SHORT,
    defend,
    equal,
    images,
    named,
    training_data,
    undefended,
)

OPACUS = pytest.mark.skipif(
    importlib.util.find_spec("opacus") is None, reason="opacus is not installed"
)
NAMES = [pytest.param(n, marks=OPACUS if n == "dp-sgd" else ()) for n in DEFENCES]


@pytest.mark.parametrize("name", NAMES)
def test_a_defence_gives_a_target_that_repeats_and_can_be_saved(name: str, tmp_path: Path) -> None:
    given = training_data(training=SHORT)
    one, same, other = (defend(named(name), given, seed) for seed in (3, 3, 4))
    assert equal(one, same)
    x = images(5).floats()
    assert one.target.classes == undefended().classes and one.target(x).shape == (len(x), 3)
    assert one.target.spec != undefended().spec
    json.dumps(dict(one.facts))
    if name == "purification":
        assert one.classifier is None
        return
    assert not equal(one, other)
    assert one.classifier is not None
    save_classifier(one.classifier, tmp_path / "model.safetensors")
    again = target_of(load_classifier(tmp_path / "model.safetensors"), "again")
    assert torch.equal(again(x), one.target(x))
    assert not any(p.requires_grad for p in one.target.module.parameters())


@pytest.mark.parametrize("name", [n for n in DEFENCES if n not in ("dp-sgd", "purification")])
def test_what_is_defended_still_classifies(name: str) -> None:
    given = training_data(size=16 if name == "tl-dmi" else 8)
    given = replace(given, training=replace(given.training, epochs=12, learning_rate=0.02))
    target = defend(named(name), given).target
    fresh = images(6, size=given.image_shape[1])
    accuracy = float((target(fresh.floats()).argmax(1) == fresh.labels).float().mean())
    assert accuracy > 0.8


@pytest.mark.parametrize("name", [n for n in DEFENCES if n != "dp-sgd"])
def test_access_stays_what_it_was(name: str) -> None:
    given = training_data(training=SHORT)
    restricted = undefended().restricted(Access.SCORES)
    made = named(name).fit(given, restricted, rng=generator(0))
    assert made.target.access is Access.SCORES


def test_levels() -> None:
    levels = {name: named(name).level for name in DEFENCES}
    assert {n for n, level in levels.items() if level == "sample"} == {
        "removal", "down-weighting", "augmentation", "replacement",
    }  # fmt: skip
    assert levels["purification"] == "output" and levels["mid"] == "model"


def test_own_defences_and_wrong_settings() -> None:
    own = build("tests.defences.examples:Answers", DEFENCES, role="--defence")
    assert isinstance(own, Defence)
    made = build({"class": "mid", "weight": 0.5}, DEFENCES, role="--defence")
    assert made == named("mid", weight=0.5)
    with pytest.raises(ConfigError, match="did you mean bido"):
        build("bidoo", DEFENCES, role="--defence")
    with pytest.raises(ConfigError, match="weight"):
        build({"class": "down-weighting", "weight": 2.0}, DEFENCES, role="--defence")


@pytest.mark.parametrize("protected", [torch.ones(3, dtype=torch.bool), torch.ones(36)])
def test_protected_is_one_truth_value_an_image(protected: torch.Tensor) -> None:
    with pytest.raises(InputError, match="36 truth values"):
        replace(training_data(), protected=protected)
