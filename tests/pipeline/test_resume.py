"""Audits that are stopped and resumed end with the tables that they would have had."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inversight import AuditResult, audit, resume
from inversight.core.console import Quiet
from inversight.core.errors import RunError
from inversight.core.progress import Progress
from inversight.core.run import Run
from inversight.core.threads import using_threads
from inversight.pipeline.estimate import Estimate
from tests.pipeline.tiny import (
    CHECKPOINTS,
    TINY,
    TWO,
    Stop,
    StopAt,
    hashes,
    own_target,
    without_holdout,
)

pytestmark = pytest.mark.usefixtures("no_trials")

STOPS = [
    ("target", 2), ("public-network", 1), ("prior", 1), ("prior", 4), ("evaluator", 1),
    ("adaptation", 3), ("plug-and-play", 1), ("scores", 1), ("signals", 1),
]  # fmt: skip
"""Stages, in order, and the steps after which an audit is stopped in each."""


def test_stopped_in_every_stage_it_ends_with_the_same_tables(
    finished: AuditResult, grey: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for i, stop in enumerate(STOPS):
        with pytest.raises(Stop):
            if i == 0:
                audit(out=run, reporter=StopAt(*stop), **grey, **{**TINY, "prior": CHECKPOINTS})
            else:
                resume(run, reporter=StopAt(*stop))
        assert not (run / "samples.parquet").exists()
    resume(run)
    assert hashes(run) == hashes(finished.run)


@dataclass
class CountThreads(Quiet):
    """Notes the number of threads of each stage, and stops the audit in the stage ``until``."""

    until: str = ""
    found: dict[str, int] = field(default_factory=dict)

    def stage(self, name: str) -> Progress:
        def progress(done: int, total: int, note: str = "") -> None:
            self.found[name] = torch.get_num_threads()
            if name == self.until:
                raise Stop

        return progress


@pytest.mark.parametrize(("fixed", "prior", "others"), [(None, 2, 4), (3, 3, 3)])
def test_threads_of_each_stage_are_kept(
    fixed: int | None, prior: int, others: int, grey: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    chosen = {"prior": 2} if fixed is None else {}
    forecast = Estimate({}, 0, 0, threads=chosen)
    monkeypatch.setattr("inversight.pipeline.audit.estimate", lambda _: forecast)
    monkeypatch.setattr("inversight.core.threads.cpu_count", lambda: 4)
    run, counted = tmp_path / "run", CountThreads("prior")
    with using_threads(8), pytest.raises(Stop):
        audit(out=run, reporter=counted, threads=fixed, **grey, **TINY)
    assert counted.found["target"] == others and counted.found["prior"] == prior
    again, before = CountThreads("adaptation"), torch.get_num_threads()
    with pytest.raises(Stop):
        resume(run, reporter=again)
    assert again.found["prior"] == prior and again.found["evaluator"] == others
    assert torch.get_num_threads() == before
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["threads"] == others and manifest["stage_threads"] == chosen


def test_many_images_are_decoded_once_and_removed_at_the_end(
    finished: AuditResult, grey: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inversight.data.store.MOST_IN_MEMORY", 100)
    run = tmp_path / "run"
    with pytest.raises(Stop):
        audit(out=run, reporter=StopAt("prior", 1), **grey, **TINY)
    assert len(list((run / "decoded").glob("*.uint8"))) == 3
    monkeypatch.setattr("inversight.data.reading.decode", None)
    resume(run)
    assert not (run / "decoded").exists() and not list(tmp_path.glob(".run*"))
    assert hashes(run) == hashes(finished.run)


def test_resuming_a_finished_run_changes_nothing(finished_home: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_home / "run", tmp_path / "run")
    before = hashes(run)
    again = resume(run)
    assert hashes(run) == before and again.run == run


def test_resumes_from_another_folder(
    grey: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {name: path.name for name, path in grey.items()} | {"target": own_target(Path())}
    Path("people.csv").write_text("role,id,who\nprivate,ann/0.png,A\nprivate,ann/1.png,A\n")
    with pytest.raises(Stop):
        audit(out="run", group_by="people.csv:who", reporter=StopAt("prior", 1), **given, **TINY)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    Path("../people.csv").write_text("role,id,who\nprivate,ann/0.png,A\nprivate,ann/2.png,A\n")
    with pytest.raises(RunError, match="the groups have changed since the run began"):
        resume("../run")
    Path("../people.csv").write_text("role,id,who\nprivate,ann/1.png,A\nprivate,ann/0.png,A\n")
    found = resume("../run")
    assert found.metrics["ddcs_best"]["value"] is not None
    assert found.samples.set_index("id")["group"].dropna().to_dict() == {
        "ann/0.png": "A", "ann/1.png": "A",
    }  # fmt: skip


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


def test_stopped_in_a_second_attack_and_in_the_control_it_ends_the_same(
    finished_without_holdout: AuditResult, grey: dict[str, Path], tmp_path: Path
) -> None:
    expected, run = finished_without_holdout.run, tmp_path / "run"
    with pytest.raises(Stop):
        audit(out=run, reporter=StopAt("mirror-black-box", 1), **without_holdout(grey), **TWO)
    with pytest.raises(Stop):
        resume(run, reporter=StopAt("control", 1))
    resume(run)
    for file in ("metrics.json", "metrics_by_set.json"):
        assert (run / file).read_text() == (expected / file).read_text()
    one, other = (json.loads((r / "run.json").read_text()) for r in (expected, run))
    assert one["queries"] == other["queries"]
