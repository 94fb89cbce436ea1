"""Folders of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.files import picture, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with two good 8x8 grey images each."""
    for i, name in enumerate(["a/1.png", "a/2.png", "b/1.png", "b/2.png"]):
        save(picture(i), tmp_path / "data" / name)
    return tmp_path / "data"
