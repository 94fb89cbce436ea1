"""Fixtures of the tests of priors."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a file of published networks, not written yet."""
    return tmp_path / "networks.pkl"
