"""The run folder: manifest, atomic stages, resume.

``RUN/run.json`` is the manifest. Each stage fills ``RUN/stages/.NAME.partial`` and is renamed to
``RUN/stages/NAME`` when it is whole, so a stage is either there or not, whatever stops the process.
A long stage may leave a checkpoint of its own in the partial folder and find it again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from inversight.core.errors import RunError

MANIFEST = "run.json"
_FOLDER_README = """\
This folder is the record of an inversight audit.

Sensitive, treat like the private images themselves:
  reconstructions/   images that an attack drew from the model; they can show what it was trained on
  stages/            checkpoints: the target and evaluator trained on the private images (if the
                     audit trained them), the adapted prior and samples of it, the attack's latents
  samples.parquet, samples_by_set.parquet, signals.parquet, reconstructions.parquet, holdout.parquet
                     names of images and how exposed each is (names hashed with --hash-ids)
  report.html        the same ledger; pictures only if --images blurred or full was given

Less sensitive:
  metrics.json, metrics_by_set.json
                     figures over the whole set
  model-card.md, model-card.json
                     the main figures, for a model card; no name of an image, a class or a file
  budget.parquet     figures of each attack within a number of queries, with --budget
  run.json           settings, versions, paths of the inputs, times
"""


def write_text(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` is either the old file or the whole new one."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """JSON, indented, written whole or not at all. NaN is refused: it is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


class Run:
    """One run folder. Only one process at a time holds it."""

    def __init__(self, path: Path, manifest: dict[str, Any], lock: FileLock) -> None:
        self.path = path
        self.manifest = manifest
        self._lock = lock

    @staticmethod
    def check_new(path: Path, *, needed_bytes: int) -> None:
        """See whether a new run may be written to ``path``, writing nothing.

        Raises:
            RunError: the folder holds something already, cannot be written, or has no room.
        """
        if path.exists() and not path.is_dir():
            raise RunError(f"--out {path}: expected a folder, found a file")
        if path.is_dir() and any(path.iterdir()):
            what = "another run" if (path / MANIFEST).is_file() else "other files"
            more = f", or continue it with --resume {path}" if what == "another run" else ""
            raise RunError(f"--out {path}: holds {what}; name a new or empty folder{more}")
        parent = next(p for p in (path, *path.absolute().parents) if p.is_dir())
        if not os.access(parent, os.W_OK):
            raise RunError(f"--out {path}: no permission to write in {parent}")
        free = shutil.disk_usage(parent).free
        if free < needed_bytes:
            raise RunError(
                f"--out {path}: the run needs about {needed_bytes / 1e6:.0f} MB and "
                f"{free / 1e6:.0f} MB are free there; make room or name another folder"
            )

    @classmethod
    def create(cls, path: Path, manifest: dict[str, Any]) -> Run:
        """Start a run in ``path``, which :meth:`check_new` has passed."""
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        write_text(path / "README.txt", _FOLDER_README)
        run = cls(path, {**manifest, "stages": [], "finished": False}, lock)
        run.save()
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Go on with the run in ``path``.

        Raises:
            RunError: not a run folder, damaged, or in use by another process.
        """
        manifest = read_manifest(path)
        return cls(path, manifest, _lock(path))

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.release()

    def save(self) -> None:
        """Write the manifest."""
        write_json(self.path / MANIFEST, self.manifest)

    def record(self, **facts: Any) -> None:
        """Add facts to the manifest and write it."""
        self.manifest.update(facts)
        self.save()

    def is_done(self, name: str) -> bool:
        return (self.path / "stages" / name).is_dir()

    def stage(self, name: str, build: Callable[[Path], None]) -> Path:
        """The folder of stage ``name``; ``build(folder)`` fills it unless that was done before.

        Raises:
            RunError: the disk is full. What is finished stays and can be resumed.
        """
        final = self.path / "stages" / name
        if not final.is_dir():
            partial = final.with_name(f".{name}.partial")
            started = time.monotonic()
            try:
                partial.mkdir(parents=True, exist_ok=True)
                build(partial)
                spent = self._spent(partial) + time.monotonic() - started
                write_json(partial / "stage.json", {"seconds": round(spent, 2)})
                partial.replace(final)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise RunError(
                        f"{self.path}: no room on the disk during stage {name}; make room, then "
                        f"continue with --resume {self.path}"
                    ) from error
                raise
            except BaseException:
                with suppress(OSError):
                    spent = self._spent(partial) + time.monotonic() - started
                    write_json(partial / "spent.json", {"seconds": spent})
                raise
        seconds = json.loads((final / "stage.json").read_text())["seconds"]
        stages = [s for s in self.manifest["stages"] if s["name"] != name]
        self.record(stages=[*stages, {"name": name, "seconds": seconds}])
        return final

    @staticmethod
    def _spent(partial: Path) -> float:
        """Seconds that earlier, interrupted tries at a stage took and did not lose."""
        with suppress(OSError, ValueError, KeyError):
            return float(json.loads((partial / "spent.json").read_text())["seconds"])
        return 0.0

    def publish(self, source: Path, name: str) -> Path:
        """Copy a stage's product to ``RUN/name`` (file or folder), whole or not at all."""
        final = self.path / name
        partial = self.path / f".{name}.partial"
        if partial.is_dir():
            shutil.rmtree(partial)
        if source.is_dir():
            shutil.copytree(source, partial)
            if final.is_dir():
                shutil.rmtree(final)
        else:
            shutil.copyfile(source, partial)
        partial.replace(final)
        return final


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the run in ``path``.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise RunError(f"{path}: not a run folder (no {MANIFEST}); name the folder an audit wrote")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read ({error})") from None
    if not isinstance(manifest, dict) or "stages" not in manifest:
        raise RunError(f"{file}: was not written by inversight")
    return manifest


def _lock(path: Path) -> FileLock:
    lock = FileLock(path / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(
            f"{path}: another process is working on this run; wait for it to end"
        ) from None
    return lock
