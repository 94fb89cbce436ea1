"""Properties of every defence: protocol, repetition, access, files."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inversight.core.errors import ConfigError, InputError
from inversight.core.seeding import generator
from inversight.defences import MID, Defence
from inversight.models.networks import load_classifier, save_classifier
from inversight.models.target import Access, target_of
from inversight.settings import DEFENCES
from tests.defences.problem import (
    LONGER,
    SHORT,
    accuracy,
    defend,
    images,
    named,
    same,
    training_data,
    undefended,
)  # fmt: skip

QUICKER: dict[str, Any] = {"dp-sgd": {"epsilon": 1.0}, "tl-dmi": {"pretraining_steps": 100}}
"""Settings that take less time than the defaults."""


@pytest.mark.parametrize("name", DEFENCES)
def test_repeats_keeps_the_access_and_can_be_saved(name: str, tmp_path: Path) -> None:
    if name == "dp-sgd":
        pytest.importorskip("opacus", reason="opacus is not installed")
    given, before = training_data(training=SHORT), undefended(8)
    defence = named(name, **QUICKER.get(name, {}))
    one, other = (defend(defence, given, seed) for seed in (3, 4))
    again = defence.fit(given, before.restricted(Access.SCORES), rng=generator(3))
    assert same(one, again) and again.target.access is Access.SCORES
    x = images(5).floats()
    assert one.target.classes == before.classes and one.target(x).shape == (len(x), 3)
    assert one.target.spec != before.spec
    json.dumps(dict(one.facts))
    if name == "purification":
        assert one.classifier is None
        return
    assert not same(one, other) and one.classifier is not None
    save_classifier(one.classifier, tmp_path / "model.safetensors")
    loaded = target_of(load_classifier(tmp_path / "model.safetensors"), "loaded")
    assert torch.equal(loaded(x), one.target(x))
    assert not any(p.requires_grad for p in one.target.module.parameters())


@pytest.mark.parametrize("name", [n for n in DEFENCES if n not in ("dp-sgd", "purification")])
def test_defended_models_still_classify(name: str) -> None:
    defence = named(name, **QUICKER.get(name, {}))
    assert accuracy(defend(defence, training_data(training=LONGER))) > 0.8


def test_level_of_each_defence() -> None:
    levels = {name: named(name).level for name in DEFENCES}
    assert {n for n, level in levels.items() if level == "sample"} == {
        "removal", "down-weighting", "augmentation", "replacement",
    }  # fmt: skip
    assert levels["purification"] == "output" and levels["mid"] == "model"


def test_builds_custom_defences_and_rejects_wrong_settings() -> None:
    assert isinstance(named("tests.defences.examples:Answers"), Defence)
    assert named("mid", weight=0.5) == MID(weight=0.5)
    with pytest.raises(ConfigError, match="did you mean bido"):
        named("bidoo")
    with pytest.raises(ConfigError, match="weight"):
        named("down-weighting", weight=2.0)
    with pytest.raises(ConfigError, match="alpha"):
        named("negative-label-smoothing", alpha=0.1)


@pytest.mark.parametrize("protected", [torch.ones(3, dtype=torch.bool), torch.ones(36)])
def test_rejects_wrong_protected(protected: torch.Tensor) -> None:
    with pytest.raises(InputError, match="36 truth values"):
        replace(training_data(), protected=protected)


def test_dp_sgd_needs_opacus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(InputError, match=r"pip install 'inversight\[dp\]'"):
        defend(named("dp-sgd"))
