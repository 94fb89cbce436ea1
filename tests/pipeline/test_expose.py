"""Shadow models that are added to an audit, stopped, changed or asked for anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import inversight
from inversight.core.console import Quiet
from inversight.core.errors import ConfigError, RunError
from inversight.core.run import read_object, write_json
from inversight.pipeline import exposure_stages, shadows
from inversight.pipeline.audit import resume
from inversight.pipeline.defend import defend
from inversight.pipeline.expose import expose, expose_models, plan_exposure
from inversight.pipeline.shadow_run import LocalRun
from tests.command import CommandLine
from tests.pipeline.tiny import SHADOWED, Stop, image_folders

pytestmark = pytest.mark.usefixtures("no_trials")


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
    real = shadows._distances

    def stop_in_a_block(job: Any, attack: Any, models: Any, *others: Any) -> Any:
        if len(models) > 1:
            raise Stop
        return real(job, attack, models, *others)

    with monkeypatch.context() as patch:
        patch.setattr(shadows, "_distances", stop_in_a_block)
        with pytest.raises(Stop):
            expose(run, shadows=4, keep_shadows=True)
    folder = run / "stages/shadows"
    assert list(folder.glob("kept-*")) and not list(folder.glob("pairs-*"))
    resume(run)
    assert read_object(run / "run.json")["shadows"]["models"] == 4
    assert len(list(folder.glob("kept-*/model-*.safetensors"))) == 4


def test_models_with_common_weights_are_kept(audited: Path, tmp_path: Path) -> None:
    inversight.audit(
        **image_folders(tmp_path), **{**SHADOWED, "shadows": 4, "keep_shadows": True},
        target=str(audited / "none/stages/target"), recipe=f"{__name__}:train_tied",
        out=tmp_path / "run",
    )  # fmt: skip
    folder = tmp_path / "run/stages/shadows"
    assert len(list(folder.glob("kept-*/model-*.safetensors"))) == 4


def test_refused_change_leaves_the_run_as_it_was(audited: Path, tmp_path: Path) -> None:
    run = copied(audited / "run", tmp_path / "run")
    before = (run / "run.json").read_text()
    with pytest.raises(RunError, match="another adapt_shadows"):
        expose(run, shadows=12, adapt_shadows=True)
    assert (run / "run.json").read_text() == before
    assert expose(run, shadows=12).metrics["exposure_mean"]["models"] == 12


def test_deleted_shadow_models_begin_anew(audited: Path, tmp_path: Path) -> None:
    run = copied(audited / "run", tmp_path / "run")
    shutil.rmtree(run / "stages/shadows")
    measured = run / "stages/shadow-target/measured.safetensors"
    old = measured.stat().st_mtime_ns
    expose(run, shadows=4, adapt_shadows=True)
    facts = read_object(run / "run.json")["shadows"]
    assert (facts["models"], facts["looks"], facts["prior"]) == (4, [4], "adapted")
    # The model under audit is attacked anew too, as its shadow models are.
    assert measured.stat().st_mtime_ns > old
    assert not (run / "stages/exposure-8").exists()


def test_exposure_without_a_number_keeps_what_is_there(audited: Path, tmp_path: Path) -> None:
    run = copied(audited / "run", tmp_path / "run")
    expose(run, shadows=20)
    assert expose(run).metrics["exposure_mean"]["models"] == 20
    assert read_object(run / "run.json")["shadows"]["looks"] == [8, 20]


def test_exposure_stays_published_until_there_is_more(
    audited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(audited / "run", tmp_path / "run")
    tables = ("metrics.json", "samples.parquet", "exposure.parquet")
    before = [(run / name).read_bytes() for name in tables]
    with monkeypatch.context() as patch:
        patch.setattr(shadows, "_distances", stop)
        with pytest.raises(Stop):
            expose(run, shadows=12)
    assert [(run / name).read_bytes() for name in tables] == before
    assert resume(run).metrics["exposure_mean"]["models"] == 12


def test_look_is_counted_before_it_is_shown(
    audited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(audited / "none", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(exposure_stages.ExposureStages, "_publish", stop)
        with pytest.raises(Stop):
            expose(run, shadows=4)
    expose(run, shadows=8)
    assert read_object(run / "run.json")["shadows"]["looks"] == [4, 8]


def test_models_that_a_stopped_process_left_are_deleted(audited: Path, tmp_path: Path) -> None:
    run = copied(audited / "run", tmp_path / "run")
    left = run / "stages/shadows/models-pairs-0000-0002"
    left.mkdir()
    (left / "0.safetensors").touch()
    expose(run)
    assert not left.exists()


@pytest.mark.parametrize("done", [0, 1, 2])
def test_threads_of_other_stages_do_not_depend_on_how_far_a_run_came(
    tmp_path: Path, done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalRun, "_submit", lambda *_: None)
    blocks = shadows.blocks_of(4, 2)
    for block in blocks[:done]:
        block.file(tmp_path).touch()
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        job: Any = None
        with LocalRun(job, tmp_path, blocks, workers=2, threads=1):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def with_threshold(run: Path, folder: Path, threshold: str) -> Path:
    """Return a copy of ``run`` whose audit had a threshold."""
    copied(run, folder)
    manifest = read_object(folder / "run.json")
    manifest["given"]["fail_on"] = threshold
    write_json(folder / "run.json", manifest)
    return folder


def test_plan_of_a_run_with_a_threshold_on_exposure(audited: Path, tmp_path: Path) -> None:
    run = with_threshold(audited / "run", tmp_path / "run", "exposed>0.5")
    assert [one.models for one in plan_exposure(run)] == [8, 16, 24, 32, 64]


def test_plan_takes_no_spread_from_models_that_are_not_paired(
    audited: Path, tmp_path: Path
) -> None:
    run = copied(audited / "run", tmp_path / "run")
    assert plan_exposure(run)[0].measured
    manifest = read_object(run / "run.json")
    manifest["shadows"]["pairs"] = 0
    write_json(run / "run.json", manifest)
    assert not plan_exposure(run)[0].measured


def test_threshold_is_checked_on_models_of_ones_own(audited: Path, tmp_path: Path) -> None:
    run = with_threshold(audited / "none", tmp_path / "run", "exposure_mean>0.5")
    table = own_models(tmp_path, audited / "none/stages/target", members=3)
    assert expose_models(run, table).exceeded


def test_threshold_that_so_few_models_cannot_cross_is_refused(
    audited: Path, tmp_path: Path, cli: CommandLine
) -> None:
    run = with_threshold(audited / "none", tmp_path / "run", "exposed>0.02")
    message = cli.fails(f"expose {run} --shadows 4", code=2)
    assert "exposed needs at least 8 shadow models, found 4" in message


class StopAtAnnouncement(Quiet):
    """Stops a command when it says what it will do, and keeps what it said."""

    said = ""

    def say(self, text: str) -> None:
        self.said = text
        raise Stop


def test_comparison_of_defences_takes_no_time_for_shadow_models(
    audited: Path, tmp_path: Path
) -> None:
    run = copied(audited / "run", tmp_path / "run")
    manifest = read_object(run / "run.json")
    for stage in manifest["stages"]:
        if stage["name"] == "shadows":
            stage["seconds"] = 6e6
    write_json(run / "run.json", manifest)
    reporter = StopAtAnnouncement()
    with pytest.raises(Stop):
        defend(run, ["tests.defences.examples:Twin"], reporter=reporter)
    assert "2 models, at most about 1 minutes" in reporter.said


def own_models(folder: Path, target: Path, members: int) -> Path:
    """Write a table of four equal models, trained with ``members`` of the private images or the others."""
    names = [f"private/{c}/{i}.png" for c in ("ann", "bob") for i in range(6)]
    lines = ["model,members"]
    for number in range(4):
        chosen = [n for i, n in enumerate(names) if (i < members) == (number % 2 == 0)]
        (folder / f"{number}.txt").write_text("\n".join(chosen))
        lines.append(f"{target},{number}.txt")
    (folder / "models.csv").write_text("\n".join(lines))
    return folder / "models.csv"


def test_models_of_ones_own_are_measured_by_what_they_are(
    audited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(audited / "none", tmp_path / "run")
    target = audited / "none/stages/target"
    with monkeypatch.context() as patch:  # with a mistake in the table that is found in time
        patch.setattr(exposure_stages.ExposureStages, "_publish", stop)
        with pytest.raises(Stop):
            expose_models(run, own_models(tmp_path, target, members=3))
    expose_models(run, own_models(tmp_path, target, members=5))
    facts = read_object(run / "run.json")["shadows"]
    assert facts["train_images"] == 6.0  # (5 + 7) / 2
    assert len(list((run / "stages/models").glob("*.safetensors"))) == 4  # two of each table
    tables = ("metrics.json", "samples.parquet", "exposure.parquet")
    before = [(run / name).read_bytes() for name in tables]
    assert resume(run).metrics["exposure_mean"]["models"] == 4
    assert [(run / name).read_bytes() for name in tables] == before
    with pytest.raises(ConfigError, match="models that were given"):
        expose(run, shadows=8)
