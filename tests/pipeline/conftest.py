"""Finished audits, shared by all tests that only read them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from inversight import AuditResult, audit
from inversight.core.console import Quiet
from inversight.pipeline.context import Context
from inversight.pipeline.prior import train_prior
from inversight.pipeline.train import train
from tests.pipeline.tiny import (
    SHADOWED,
    TINY,
    TWO,
    image_folders,
    read_result,
    without_figures,
    without_holdout,
    without_trials,
)

Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(autouse=True)
def no_figures() -> Iterator[None]:
    """Leave the figures of reports empty. Audits of fixtures of a session have them."""
    with without_figures():
        yield


@pytest.fixture
def grey(tmp_path: Path) -> dict[str, Path]:
    """Private, holdout and public images of the test's own."""
    return image_folders(tmp_path)


def run_audit(home: Path, settings: dict[str, Any], *, holdout: bool = True) -> None:
    """Write images (private, holdout, public) and an audit of them (run) to ``home``."""
    folders = image_folders(home)
    with without_trials():
        audit(out=home / "run", **(folders if holdout else without_holdout(folders)), **settings)


@pytest.fixture(scope="session")
def finished_home(once: Once) -> Path:
    """A folder with images and the audit TINY of them; see :func:`run_audit`."""
    return once("finished", lambda home: run_audit(home, TINY))


@pytest.fixture
def finished(finished_home: Path) -> AuditResult:
    """The audit TINY. Read only."""
    return read_result(finished_home / "run")


@pytest.fixture
def finished_without_holdout(once: Once) -> AuditResult:
    """The audit TWO without a holdout. Read only."""
    home = once("finished-without-holdout", lambda home: run_audit(home, TWO, holdout=False))
    return read_result(home / "run")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Private, holdout and public images in the current folder."""
    monkeypatch.chdir(tmp_path)
    return image_folders(tmp_path)


@pytest.fixture
def trained(once: Once, here: dict[str, Path]) -> dict[str, Path]:
    """A target and a prior in the current folder, beside the images that they were trained on."""

    def fill(home: Path) -> None:
        folders, context = image_folders(home), Context(0, torch.device("cpu"), Quiet())
        small = {"steps": 4, "batch_size": 4, "width": 2}
        train(
            folders["private"], home / "target", size=None, given={"epochs": 3, "width": 2},
            context=context,
        )  # fmt: skip
        train_prior(
            folders["public"], home / "prior", size=None, features="none", network=None, given=small,
            context=context,
        )  # fmt: skip

    for name in ("target", "prior"):
        shutil.copytree(once("trained", fill) / name, name)
    return here


@pytest.fixture
def no_trials() -> Iterator[None]:
    """Skip the trials from which an audit's time is estimated."""
    with without_trials():
        yield


@pytest.fixture(scope="session")
def audited(once: Once) -> Path:
    """A folder with images and two runs of one audit: ``run`` with 8 shadow models, ``none`` without."""

    def fill(folder: Path) -> None:
        folders = image_folders(folder)
        with without_trials():
            audit(**folders, **SHADOWED, out=folder / "run")
            audit(**folders, **{**SHADOWED, "shadows": 0}, out=folder / "none")

    return once("exposed-audits", fill)
