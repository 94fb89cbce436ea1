"""Finished audits, shared by all tests that only read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inversight import AuditResult, audit
from tests.command import CommandLine
from tests.pipeline.tiny import (
    SMALL_PRIOR,
    SMALL_TRAINING,
    TINY,
    TWO,
    image_folders,
    read_result,
    without_holdout,
    without_trials,
)

Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture
def grey(tmp_path: Path) -> dict[str, Path]:
    """Private, holdout and public images of the test's own."""
    return image_folders(tmp_path)


@pytest.fixture(scope="session")
def finished_home(once: Once) -> Path:
    """A folder with images (private, holdout, public) and the audit TINY of them (run)."""
    return once("finished", lambda f: audit(out=f / "run", **image_folders(f), **TINY))


@pytest.fixture
def finished(finished_home: Path) -> AuditResult:
    """The audit TINY. Read only."""
    return read_result(finished_home / "run")


@pytest.fixture
def finished_without_holdout(once: Once) -> AuditResult:
    """The audit TWO without a holdout. Read only."""
    home = once(
        "finished-without-holdout",
        lambda f: audit(out=f / "run", **without_holdout(image_folders(f)), **TWO),
    )
    return read_result(home / "run")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Private, holdout and public images in the current folder."""
    monkeypatch.chdir(tmp_path)
    return image_folders(tmp_path)


@pytest.fixture
def trained(here: dict[str, Path], cli: CommandLine) -> dict[str, Path]:
    """A target and a prior, by their own commands."""
    cli.succeeds("train --private private --out target", SMALL_TRAINING)
    cli.succeeds("prior train --public public --out prior", *SMALL_PRIOR)
    return here


@pytest.fixture
def no_trials() -> Iterator[None]:
    """Skip the trials from which an audit's time is estimated."""
    with without_trials():
        yield
