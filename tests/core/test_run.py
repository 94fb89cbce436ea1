"""The run folder: stages are there or not, one process holds it, nothing foreign is touched."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from safetensors import SafetensorError

from inversight.core import run as folders
from inversight.core.errors import DiskFullError, RunError
from inversight.core.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", {"seed": 0})


def fails(error: BaseException) -> Callable[[Path], object]:
    """Return a stage that leaves a checkpoint and raises ``error``."""

    def fill(folder: Path) -> None:
        (folder / "checkpoint").write_text("half")
        raise error

    return fill


def goes_on(folder: Path) -> None:
    assert (folder / "checkpoint").read_text() == "half"


def test_a_stage_is_built_once(run: Run) -> None:
    stage = run.stage("prior", lambda folder: (folder / "x").write_text("done"))
    assert run.stage("prior", fails(AssertionError("is not called"))) == stage
    assert (stage / "x").read_text() == "done"
    assert [s["name"] for s in run.manifest["stages"]] == ["prior"]


def test_a_stage_that_fails_is_not_there_and_finds_its_checkpoint_again(run: Run) -> None:
    with pytest.raises(KeyboardInterrupt):
        run.stage("prior", fails(KeyboardInterrupt()))
    assert not run.folder("prior").is_dir()
    assert folders.read_manifest(run.path)["stages"] == []
    run.close()
    again = Run.open(run.path)
    again.stage("prior", goes_on)
    assert again.folder("prior").is_dir()


def test_seconds_of_interrupted_tries_count(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 100.0, 103.0])
    monkeypatch.setattr("inversight.core.run.time.monotonic", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt):
        run.stage("prior", fails(KeyboardInterrupt()))
    run.stage("prior", goes_on)
    assert run.manifest["stages"] == [{"name": "prior", "seconds": 8.0}]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
    ],
)
def test_full_disk_raises_one_line_and_can_be_resumed(run: Run, error: Exception) -> None:
    message = r"stage prior: no room on the disk.*--resume"
    with pytest.raises(DiskFullError, match=message) as caught:
        run.stage("prior", fails(error))
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    assert not run.folder("prior").is_dir()
    run.stage("prior", goes_on)


def test_other_errors_pass_unchanged(run: Run) -> None:
    with pytest.raises(PermissionError):
        run.stage("prior", fails(PermissionError(errno.EACCES, "Permission denied")))


def test_one_process_at_a_time(run: Run) -> None:
    with pytest.raises(RunError, match="another process is working on this run"):
        Run.open(run.path)
    run.close()
    Run.open(run.path).close()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("run", "holds another run.*--resume"),
        ("pictures", "other files"),
        ("pictures/1.png", "found a file"),
    ],
)
def test_rejects_paths_that_exist(tmp_path: Path, out: str, message: str) -> None:
    files = [tmp_path / name for name in ("pictures/1.png", "run/run.json")]
    for file in files:
        file.parent.mkdir()
        file.write_text("{}")
    with pytest.raises(RunError, match=message):
        folders.check_new_folder(tmp_path / out, needed_bytes=0)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == files


def test_checks_free_space_before_writing(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="about 1000000000000 MB are needed"):
        folders.check_new_folder(tmp_path / "deep" / "er", needed_bytes=10**18)
    assert not (tmp_path / "deep").exists()


def test_publishing_replaces_a_file(run: Run, tmp_path: Path) -> None:
    for text in ("1", "2"):
        (tmp_path / "table").write_text(text)
        run.publish(tmp_path / "table")
        assert (run.path / "table").read_text() == text
    assert not list(run.path.glob(".*.partial"))


@pytest.mark.parametrize("resumable", [False, True])
def test_atomic_folder_exists_only_when_complete(tmp_path: Path, resumable: bool) -> None:
    final = tmp_path / "deep" / "folder"
    begin = partial(folders.atomic_folder, final, resumable=resumable)
    with pytest.raises(KeyboardInterrupt), begin() as folder:
        (folder / "a").write_text("half")
        raise KeyboardInterrupt
    assert not final.exists() and bool(list(final.parent.iterdir())) == resumable
    final.mkdir()  # an empty folder may be there
    with begin() as folder:
        assert (folder / "a").exists() == resumable
        (folder / "b").write_text("whole")
    assert sorted(p.name for p in final.iterdir()) == ["a", "b"][not resumable :]
    assert list(final.parent.iterdir()) == [final]


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    folders.write_text(file, "old")
    with pytest.raises(ValueError, match="JSON"):
        folders.write_json(file, {"x": float("nan")})
    assert file.read_text() == "old"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not a run folder"),
        ("{", "cannot be read"),
        ("[]", "expected named values"),
        ("{}", "not written by inversight"),
    ],
)
def test_rejects_wrong_manifests(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=message):
        folders.read_manifest(tmp_path)


def test_rejects_damaged_files_of_hidden_names(tmp_path: Path) -> None:
    (tmp_path / folders.PRIVATE_NAMES).write_text("{")
    with pytest.raises(RunError, match=folders.PRIVATE_NAMES):
        folders.names_behind(tmp_path)


def test_the_folder_says_what_in_it_is_sensitive(run: Run) -> None:
    text = (run.path / "README.txt").read_text()
    for name in ("reconstructions/", "stages/", "samples.parquet", "report.html"):
        assert name in text
    assert json.loads((run.path / "run.json").read_text())["finished"] is False
