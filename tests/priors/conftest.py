"""Fixtures of the tests of priors."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from inversight.priors import StylePrior
from inversight.priors.pivots import project
from tests.priors.tiny import trained


@pytest.fixture
def prior() -> StylePrior:
    """A small trained prior, not to be changed."""
    return trained()


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare images with 100 samples of the prior in an adaptation, which is quick."""
    module = sys.modules["inversight.adaptation.adapt"]  # a function of that name hides it
    monkeypatch.setattr(module, "project", partial(project, samples=100))
    monkeypatch.setattr(module, "SAMPLES", 100)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a file of published networks, not written yet."""
    return tmp_path / "networks.pkl"
