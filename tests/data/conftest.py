"""Folders of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inversight.data import ImageSet, load_images
from tests.data.files import picture, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with two good 8x8 grey images each."""
    for i, name in enumerate(["a/1.png", "a/2.png", "b/1.png", "b/2.png"]):
        save(picture(i), tmp_path / "data" / name)
    return tmp_path / "data"


@pytest.fixture
def private(folder: Path) -> ImageSet:
    return load_images(folder, role="--private")


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., np.ndarray]:
    """Return a function that writes one image file and returns the pixels (C, H, W) that are read of it."""

    def call(
        image: Image.Image | bytes, name: str = "1.png", *, size: int | None = None,
        channels: int | None = None, **options: object,
    ) -> np.ndarray:  # fmt: skip
        save(image, tmp_path / "read" / "a" / name, **options)
        found = load_images(tmp_path / "read", role="--private", size=size, channels=channels)
        return found.images[0].numpy()

    return call
