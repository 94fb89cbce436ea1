"""Whole audits of models in the formats of other libraries."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from inversight import audit
from inversight.core.console import Quiet
from tests.pipeline.tiny import TINY, image_folders

pytestmark = pytest.mark.usefixtures("no_trials")


class Probable(nn.Module):
    """Gives the probability of the second of two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).sigmoid()


@dataclass
class Hearing(Quiet):
    """Keeps what is said."""

    said: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.said.append(text)


def hugging_face(folder: Path) -> str:
    """Write a folder of transformers whose classes are in another order than the images' folders."""
    names = {"id2label": {0: "bob", 1: "ann"}, "label2id": {"bob": 0, "ann": 1}}
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], **names
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.ResNetForImageClassification(config).save_pretrained(folder)
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 16}, crop_pct=0.875)
    processor.save_pretrained(folder)
    return str(folder)


def checkpoint(file: Path) -> str:
    """Write a checkpoint with several sets of weights behind prefixes."""
    states = {
        name: {f"module.{k}": v for k, v in Probable().state_dict().items()} for name in ("a", "b")
    }
    torch.save({**states, "epoch": 3}, file)
    return f"{__name__}:Probable?weights={file}&key=b"


@pytest.mark.parametrize("kind", ["hugging face", "checkpoint"])
def test_an_audit_runs_whole(tmp_path: Path, kind: str) -> None:
    reporter = Hearing()
    colour = kind == "hugging face"
    target = hugging_face(tmp_path / "model") if colour else checkpoint(tmp_path / "last.ckpt")
    result = audit(
        target=target,
        out=tmp_path / "run",
        reporter=reporter,
        **image_folders(tmp_path, colour),
        **TINY,
    )
    assert result.metrics["ddcs_best"]["value"] is not None and len(result.samples) == 12
    facts = json.loads((result.run / "run.json").read_text())["target"]
    accuracy = f"The target puts {facts['private_accuracy']:.1%} of the private images"
    assert any(accuracy in text for text in reporter.said)
    if colour:
        assert facts["resizing"] == {"size": 18, "mode": "bicubic", "half": "down"}
        assert facts["image_shape"] == [3, 16, 16]
    else:
        assert any("taken for the probability of the second" in text for text in result.warnings)
