"""Audits that are stopped and resumed end with the tables that they would have had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from inversight import AuditResult, audit, resume
from inversight.core.errors import RunError
from inversight.core.run import Run
from tests.pipeline.tiny import (
    CHECKPOINTS,
    TINY,
    TWO,
    Stop,
    StopAt,
    hashes,
    own_weights,
    without_holdout,
)

pytestmark = pytest.mark.usefixtures("no_trials")

STOPS = [
    ("target", 2),
    ("evaluator", 1),
    ("public-network", 1),
    ("prior", 1),
    ("prior", 4),
    ("adaptation", 3),
    ("plug-and-play", 1),
    ("scores", 1),
    ("signals", 1),
]


@pytest.mark.parametrize(("name", "after"), STOPS)
def test_stopped_anywhere_it_ends_with_the_same_tables(
    finished: AuditResult, grey: dict[str, Path], tmp_path: Path, name: str, after: int
) -> None:
    given: dict[str, Any] = {**TINY, "prior": CHECKPOINTS}
    with pytest.raises(Stop):
        audit(out=tmp_path / "run", reporter=StopAt(name, after), **grey, **given)
    assert not (tmp_path / "run" / "samples.parquet").exists()
    resume(tmp_path / "run")
    assert hashes(tmp_path / "run") == hashes(finished.run)


def test_resuming_a_finished_run_changes_nothing(finished_home: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_home / "run", tmp_path / "run")
    before = hashes(run)
    again = resume(run)
    assert hashes(run) == before and again.run == run


def test_resumes_from_another_folder(
    grey: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = own_weights(tmp_path / "w.safetensors").name
    monkeypatch.chdir(tmp_path)
    relative = {name: path.name for name, path in grey.items()}
    target = f"tests.examples:own_network?weights={weights}"
    with pytest.raises(Stop):
        audit(out="run", reporter=StopAt("prior", 1), target=target, **relative, **TINY)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume("../run").metrics["ddcs_best"]["value"] is not None


def test_resume_refuses_changed_images(grey: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Stop):
        audit(out=run, reporter=StopAt("prior", 1), **grey, **TINY)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(grey["private"] / "ann" / "0.png")
    with pytest.raises(RunError, match="private images have changed"):
        resume(run)
    held = Run.open(run)  # refused at once, before images are read and compared
    with pytest.raises(RunError, match="another process is working"):
        resume(run)
    held.close()


@pytest.mark.parametrize("stage", ["control", "mirror-black-box"])
def test_stopped_in_a_control_or_a_second_attack_it_ends_the_same(
    finished_without_holdout: AuditResult, grey: dict[str, Path], tmp_path: Path, stage: str
) -> None:
    def files(run: Path) -> list[str]:
        return [(run / f).read_text() for f in ("metrics.json", "metrics_by_set.json")]

    expected = finished_without_holdout.run
    with pytest.raises(Stop):
        audit(out=tmp_path / "run", reporter=StopAt(stage, 1), **without_holdout(grey), **TWO)
    resume(tmp_path / "run")
    assert files(tmp_path / "run") == files(expected)
    one, other = (json.loads((r / "run.json").read_text()) for r in (expected, tmp_path / "run"))
    assert one["queries"] == other["queries"]
