"""Whole audits of models in the formats of other libraries."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from inversight import audit
from inversight.core.console import Quiet
from inversight.core.imaging import fit
from inversight.data import load_images
from tests.command import CommandLine
from tests.pipeline.tiny import TINY, image_folders

pytestmark = pytest.mark.usefixtures("no_trials")


class Probable(nn.Module):
    """Gives the probability of the second of two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).sigmoid()


class Rectangular(nn.Module):
    """Takes 16x12 images alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16 * 12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


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


def test_a_target_of_rectangles_is_audited_by_height_and_width(
    tmp_path: Path, cli: CommandLine
) -> None:
    folders = image_folders(tmp_path, False)
    smooth = np.add.outer(np.arange(24), 4 * np.arange(20)).astype(np.uint8)
    files = [f for name in sorted(folders) for f in sorted(folders[name].rglob("*.png"))]
    for number, file in enumerate(files):
        Image.fromarray(smooth + np.uint8(number)).save(file)
    weights = tmp_path / "w.safetensors"
    save_file(Rectangular().state_dict(), weights)
    given = {"target": f"{__name__}:Rectangular?weights={weights}", **folders, **TINY}
    result = audit(**given, size=(16, 12), out=tmp_path / "run", reporter=Quiet())
    facts = json.loads((result.run / "run.json").read_text())
    assert facts["target"]["image_shape"] == [1, 16, 12]
    assert facts["inputs"]["private"]["size"] == 16
    code, _, err = cli("audit", "--resume", result.run)
    assert code == 0, err
    # What the target sees is the image cut to 4:3 and scaled, up to what the square in between blurs.
    images = load_images(folders["private"], role="--private", size=(16, 12))
    seen = fit(images.floats(), size=(16, 12), channels=1)
    first = Image.open(sorted(folders["private"].rglob("*.png"))[0])
    direct = first.crop((1, 0, 19, 24)).resize((12, 16), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.asarray(direct).astype(np.float32)) / 255
    assert (seen[0, 0] - expected)[1:-1, 1:-1].abs().max() < 0.01
    code, _, err = cli("audit", "--private", folders["private"], "--size", "16x", "--public", "x")
    assert code == 2 and "--size 16x: expected N, such as 64, or HEIGHTxWIDTH" in err
