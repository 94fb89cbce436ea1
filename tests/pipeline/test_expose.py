"""Shadow models that are added to an audit, stopped, changed or asked for anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import inversight
from inversight.core.run import read_object
from inversight.pipeline import shadows
from inversight.pipeline.audit import resume
from inversight.pipeline.expose import expose
from tests.pipeline.tiny import SHADOWED, Stop, image_folders


def copied(run: Path, folder: Path) -> Path:
    """Return a copy of ``run`` that may be changed."""
    shutil.copytree(run, folder)
    return folder


def stop(*_: Any, **__: Any) -> None:
    raise Stop


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64, bias=False)
        self.second = nn.Linear(64, 64, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.flatten(1)))[:, :2]


def train_tied(dataset: object, *, classes: object, seed: int, device: torch.device) -> nn.Module:
    return Tied().to(device)


def test_stopped_after_models_were_kept(
    audited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(audited / "none", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(shadows, "_distances", stop)
        with pytest.raises(Stop):
            expose(run, shadows=4, keep_shadows=True)
    folder = run / "stages/shadows"
    assert (folder / "kept-pairs-0000-0002").is_dir()
    assert not (folder / "pairs-0000-0002.safetensors").exists()
    resume(run)
    assert read_object(run / "run.json")["shadows"]["models"] == 4
    assert len(list((folder / "kept-pairs-0000-0002").glob("model-*.safetensors"))) == 4


def test_models_with_common_weights_are_kept(audited: Path, tmp_path: Path) -> None:
    inversight.audit(
        **image_folders(tmp_path), **{**SHADOWED, "shadows": 4, "keep_shadows": True},
        target=str(audited / "none/stages/target"), recipe=f"{__name__}:train_tied",
        out=tmp_path / "run",
    )  # fmt: skip
    kept = tmp_path / "run/stages/shadows/kept-pairs-0000-0002"
    assert len(list(kept.glob("model-*.safetensors"))) == 4
