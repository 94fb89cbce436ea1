"""Fixtures of all tests. The thread count is set before torch is imported, so that workers do not contend."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Examples take longer on a busy machine; other ones are drawn in each run.
settings.register_profile("quick", deadline=None, max_examples=50)
settings.load_profile("quick")

from tests.command import CommandLine  # noqa: E402


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line, called in this process."""
    return CommandLine(capsys)


@pytest.fixture(scope="session")
def once(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, Callable[[Path], object]], Path]:
    """Return ``once(name, fill)``: a folder that ``fill`` fills once for all workers, to be read only."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def folder(name: str, fill: Callable[[Path], object]) -> Path:
        path, done = base / name, base / f"{name}.done"
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                fill(path)
                done.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def two_processes(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """What two processes wrote that trained, attacked and ran commands together. Read only."""
    pytest.importorskip("accelerate")
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    return once(
        "two-processes",
        lambda folder: subprocess.run(
            [sys.executable, "-m", "tests.two_processes", folder], check=True, env=environment
        ),
    )
