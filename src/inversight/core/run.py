"""Folders and files that are written whole or not at all, and the run folder made of them.

``RUN/run.json`` is the manifest. Each stage fills ``RUN/stages/.NAME.partial``, which is renamed to
``RUN/stages/NAME`` when it is complete. A stage is therefore there or not, whatever stops the process.
A long stage may keep a checkpoint in the partial folder and find it when it is resumed.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import importlib.metadata
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from inversight.core.errors import DiskFullError, RunError

MANIFEST = "run.json"
_TIMES = "stage.json"
PRIVATE_NAMES = "private-ids.json"
"""The file of hidden names, the key of their hashes among them under "key"."""
_FOLDER_README = Path(__file__).with_name("run-folder.txt")
"""What RUN/README.txt says about the files of a run."""


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, which is the old file or the complete new one at any time."""
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, like :func:`write_text`. NaN, which JSON lacks, is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in ``file``.

    Raises:
        RunError: the file cannot be read, or holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(value, dict):
        raise RunError(f"{file}: expected named values, found {type(value).__name__}")
    return value


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give the block a file to write, and rename it to ``path`` when the block is done."""
    yield _partial(path)
    _partial(path).replace(path)


@contextmanager
def atomic_folder(path: Path, *, resumable: bool = False) -> Iterator[Path]:
    """Give the block a folder to fill, and rename it to ``path`` when the block is done.

    ``path`` must not exist or be empty. What the block wrote is removed when it fails; with
    ``resumable`` it is kept, and the next call finds it.
    """
    partial = _partial(path)
    if not resumable:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
    except BaseException:
        if not resumable:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if path.is_dir():
        path.rmdir()
    partial.replace(path)


def _partial(path: Path) -> Path:
    """Return the name under which ``path`` is written until it is complete."""
    return path.with_name(f".{path.name}.partial")


def provenance() -> dict[str, str]:
    """Return which version of this package writes something, and when."""
    now = datetime.datetime.now().astimezone()
    version = importlib.metadata.version("inversight")
    return {"version": version, "created": now.isoformat(timespec="seconds")}


def is_disk_full(error: BaseException) -> bool:
    """Return whether ``error`` says that a disk or a quota is full, whichever library raised it."""
    return (
        isinstance(error, DiskFullError)
        or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT))
        or (isinstance(error, Exception) and "no space left on device" in str(error).lower())
    )


@contextmanager
def disk_remedy(what: str, remedy: str) -> Iterator[None]:
    """Say what to do if the disk fills up while the block runs.

    Raises:
        DiskFullError: it did. The message is "WHAT: no room on the disk; make room, then REMEDY".
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not is_disk_full(error):
            raise
        raise DiskFullError(f"{what}: no room on the disk; make room, then {remedy}") from error


def check_new_folder(path: Path, *, needed_bytes: int) -> None:
    """Check that a new folder may be written to ``path``, writing nothing.

    Raises:
        RunError: it holds something already, or may not be written.
        DiskFullError: fewer than ``needed_bytes`` are free.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"--out {path}: expected a folder, found a file")
    if (path / MANIFEST).is_file():
        raise RunError(
            f"--out {path}: holds another run; name a new folder, or continue it with --resume {path}"
        )
    if path.is_dir() and any(path.iterdir()):
        raise RunError(f"--out {path}: holds other files; name a new or empty folder")
    parent = next(p for p in (path, *path.absolute().parents) if p.is_dir())
    if not os.access(parent, os.W_OK):
        raise RunError(f"--out {path}: no permission to write in {parent}")
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise DiskFullError(
            f"--out {path}: about {needed_bytes / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are "
            "free there; make room or name another folder"
        )


def check_resumable(
    path: Path, facts: Mapping[str, Any], *, marker: str, product: str, what: str
) -> None:
    """Check that a command may begin in ``path`` or go on there, writing nothing.

    Args:
        facts: what must be the same to go on, by the name that an error gives it.
        marker: name of the file in ``path`` that holds the facts with which the command began.
        product: name of the file that is there when the command is done.
        what: the command in words, as in "a training".

    Raises:
        RunError: the folder holds something else, or the command began with other facts.
        DiskFullError: there is no room.
    """
    if not (path / marker).is_file() or (path / product).is_file():
        check_new_folder(path, needed_bytes=50_000_000)
        return
    before = json.loads((path / marker).read_text())
    for name, value in facts.items():
        if before.get(name) != value:
            raise RunError(
                f"--out {path}: {what} began there and {name} differed; give the same again to go on, "
                "or name another folder"
            )


@contextmanager
def hidden_names(run: Path, wanted: bool) -> Iterator[Callable[[str], str]]:
    """Give the block a function from names to keyed hashes, or to themselves if not ``wanted``.

    The key and the names are kept in RUN/private-ids.json.
    """
    if not wanted:
        yield str
        return
    known = names_behind(run) or {"key": secrets.token_hex(16)}
    key = bytes.fromhex(known["key"])

    def hide(name: str) -> str:
        digest = hashlib.blake2b(name.encode(), key=key, digest_size=6).hexdigest()
        known[digest] = name
        return digest

    yield hide
    write_json(run / PRIVATE_NAMES, known)


def names_behind(run: Path) -> dict[str, str]:
    """Return the name behind each hash of :func:`hidden_names` in ``run``; empty if none is hidden.

    Raises:
        RunError: the file of names is damaged.
    """
    file = run / PRIVATE_NAMES
    return read_object(file) if file.is_file() else {}


class Run(AbstractContextManager["Run"]):
    """A run folder, held by one process at a time."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._lock = FileLock(path / ".lock", blocking=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise RunError(
                f"{path}: another process is working on this run; wait for it to end"
            ) from None

    @classmethod
    def create(cls, path: Path, manifest: dict[str, Any]) -> Run:
        """Start a run in ``path``, which :func:`check_new_folder` has passed."""
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path, {**manifest, "stages": [], "finished": False})
        write_text(path / "README.txt", _FOLDER_README.read_text(encoding="utf-8"))
        run.record()
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open the run in ``path`` to go on with it.

        Raises:
            RunError: not a run folder, damaged, or in use by another process.
        """
        return cls(path, read_manifest(path))

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder for other processes."""
        self._lock.release()

    def record(self, **facts: Any) -> None:
        """Add ``facts`` to the manifest and write it."""
        self.manifest.update(facts)
        write_json(self.path / MANIFEST, self.manifest)

    def folder(self, stage: str) -> Path:
        """Return the folder of ``stage``, which exists once the stage is done."""
        return self.path / "stages" / stage

    def stage(self, name: str, fill: Callable[[Path], object]) -> Path:
        """Return the folder of stage ``name``, after ``fill(folder)`` unless it was done before.

        Raises:
            DiskFullError: the disk is full. Finished stages are kept and the run can be resumed.
        """
        final = self.folder(name)
        if not final.is_dir():
            with disk_remedy(f"{self.path}: stage {name}", f"continue with --resume {self.path}"):
                fill_stage(final, fill)
        self._timed(name)
        return final

    def growing(self, name: str, fill: Callable[[Path], object]) -> Path:
        """Return the folder of stage ``name``, which ``fill(folder)`` adds to each time it is called.

        Each file that ``fill`` writes must be whole by itself.
        """
        folder = self.folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic() - _seconds(folder)
        with disk_remedy(f"{self.path}: stage {name}", f"continue with --resume {self.path}"):
            try:
                fill(folder)
            finally:
                write_json(folder / _TIMES, {"seconds": round(time.monotonic() - begun, 2)})
        self._timed(name)
        return folder

    def _timed(self, name: str) -> None:
        """Record the seconds of a stage that is done."""
        stages = [s for s in self.manifest["stages"] if s["name"] != name]
        self.record(stages=[*stages, {"name": name, "seconds": _seconds(self.folder(name))}])

    def publish(self, *files: Path) -> None:
        """Copy a stage's ``files`` to ``RUN/NAME``, each replacing the old one at once."""
        for file in files:
            with atomic_file(self.path / file.name) as partial:
                shutil.copyfile(file, partial)


def fill_stage(final: Path, fill: Callable[[Path], object]) -> None:
    """Make the folder ``final`` of a stage by ``fill(folder)``, and note the seconds that it took."""
    with atomic_folder(final, resumable=True) as partial:
        begun = time.monotonic() - _seconds(partial)
        try:
            fill(partial)
        except BaseException:
            with suppress(OSError):
                write_json(partial / _TIMES, {"seconds": time.monotonic() - begun})
            raise
        seconds = round(time.monotonic() - begun, 2)
        write_json(partial / _TIMES, {"seconds": seconds})


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of the run in ``path``.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise RunError(f"{path}: not a run folder (no {MANIFEST}); name the folder an audit wrote")
    manifest = read_object(file)
    if "stages" not in manifest:
        raise RunError(f"{file}: was not written by inversight")
    return manifest


def _seconds(stage: Path) -> float:
    """Return the seconds spent on a stage so far, in interrupted tries too, whose work is not lost."""
    with suppress(OSError, ValueError, KeyError):
        return float(json.loads((stage / _TIMES).read_text())["seconds"])
    return 0.0
