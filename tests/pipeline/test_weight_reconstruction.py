"""An audit whose only attack reads the target's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from inversight import audit
from inversight.attacks.files import load_features
from inversight.core.errors import InputError
from inversight.core.seeding import generator
from inversight.data import load_images
from inversight.models.backbone import features_of
from inversight.models.loading import load_target
from inversight.models.spec import ModelSpec
from tests.models.test_backbone import Headed
from tests.pipeline.tiny import TINY

FEW = {
    "class": "weight-reconstruction", "guess": 6, "restarts": 1, "steps": 3, "rounds": 0, "keep": 4,
}  # fmt: skip


def test_an_audit_warns_of_a_target_that_hides_its_images_and_sends_it_none(
    grey: dict[str, Path], tmp_path: Path
) -> None:
    rng = generator(0)
    shapes = {"1.weight": (12, 64), "1.bias": (12,), "3.weight": (2, 12), "3.bias": (2,)}
    weights = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    save_file(weights, tmp_path / "own.safetensors")
    network = f"tests.examples:own_perceptron?weights={tmp_path / 'own.safetensors'}"
    own: dict[str, Any] = {
        "target": network, "evaluator": network, "arm": "vanilla", "adaptation": {"steps": 0},
        "prior": {"class": "tests.examples:NoisePrior"}, "embedding": "pixel", "features": "pixel",
        "attack": [FEW],
    }  # fmt: skip
    result = audit(out=tmp_path / "run", **TINY | grey | own)
    (warning,) = (text for text in result.warnings if "weight-reconstruction" in text)
    assert "do not show the span of the training images" in warning
    assert "far from a stationary point" in warning
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["queries"]["weight-reconstruction"] == 0
    assert result.metrics["ddcs_best"]["value"] > 0
    assert len(list((tmp_path / "run" / "reconstructions").glob("*/weight-reconstruction-*"))) == 8


def test_an_audit_compares_the_features_that_were_found_in_a_head(
    grey: dict[str, Path], tmp_path: Path
) -> None:
    model = "tests.models.test_backbone:Headed"
    weights = tmp_path / "own.safetensors"
    torch.manual_seed(0)
    save_file(Headed().state_dict(), weights)
    own: dict[str, Any] = {
        "target": f"{model}?weights={weights}", "evaluator": f"{model}?weights={weights}",
        "arm": "vanilla", "adaptation": {"steps": 0}, "prior": {"class": "tests.examples:NoisePrior"},
        "attack": [{**FEW, "pool": 5, "inversion_steps": 2}], "features": "pixel",
    }  # fmt: skip
    result = audit(out=tmp_path / "run", **TINY | grey | own | {"embedding": "backbone"})
    assert not [text for text in result.warnings if "give --embedding backbone" in text]
    private = load_images(grey["private"], role="--private")
    folder = tmp_path / "run" / "stages" / "attack-weight-reconstruction"
    found = load_features(folder, classes=private.classes, name="weight-reconstruction")
    assert len(found) == 8
    spec = ModelSpec(f"{model}?weights={weights}")
    target = load_target(spec, classes=private.classes, size=8, channels=1)
    features = features_of(target, private.floats())
    distances = {}
    for name, label, row in zip(private.ids, private.labels.tolist(), features, strict=True):
        mine = [v for k, v in found.items() if k.startswith(f"{private.classes[label]}/")]
        distances[name] = min(float((row - one).square().sum()) for one in mine)
    ledger = result.samples.set_index("id")["nearest_distance"]
    for name, distance in distances.items():
        assert ledger[name] == pytest.approx(distance, rel=1e-4)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            {"target": None, "evaluator": None, "frozen_until": "backbone"},
            "--frozen-until: is for a --target whose layers can be read; give --target",
        ),
        (
            {"target": None, "evaluator": None},
            "--embedding backbone: needs an audit of a given --target",
        ),
        (
            {"frozen_until": "bakbone"},
            r"has no layer bakbone, the one of --frozen-until.*backbone\?",
        ),
    ],
)
def test_a_backbone_that_is_not_there_is_refused(
    grey: dict[str, Path], tmp_path: Path, given: dict[str, Any], reason: str
) -> None:
    own: dict[str, Any] = {
        "target": "tests.models.test_backbone:Headed", "embedding": "backbone", "arm": "vanilla",
        "prior": {"class": "tests.examples:NoisePrior"}, "features": "pixel", "adaptation": {"steps": 0},
    }  # fmt: skip
    with pytest.raises(InputError, match=reason):
        audit(out=tmp_path / "run", **TINY | grey | own | given)
    assert not (tmp_path / "run").exists()
