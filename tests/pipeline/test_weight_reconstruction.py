"""An audit whose only attack reads the target's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from inversight import audit
from inversight.core.seeding import generator
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
