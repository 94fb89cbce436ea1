"""``pixel`` against the mean squared error by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from inversight.embeddings import Embedding, squared_distances
from inversight.embeddings.pixel import Pixel


@pytest.mark.parametrize("channels", [1, 3])
def test_distance_is_the_mean_squared_error(channels: int) -> None:
    rng = np.random.default_rng(0)
    a = rng.random((4, channels, 6, 6), dtype=np.float32)
    b = rng.random((3, channels, 6, 6), dtype=np.float32)
    embedding = Pixel((6, 6))
    assert isinstance(embedding, Embedding)
    found = squared_distances(embedding(torch.from_numpy(a)), embedding(torch.from_numpy(b)))
    for i in range(4):
        for j in range(3):
            expected = np.mean((a[i].astype(np.float64) - b[j]) ** 2)
            assert float(found[i, j]) == pytest.approx(expected, rel=1e-5)


def test_the_largest_distance_is_one() -> None:
    black, white = torch.zeros(1, 1, 8, 8), torch.ones(1, 3, 8, 8)
    embedding = Pixel((8, 8))
    assert float(squared_distances(embedding(black), embedding(white))) == pytest.approx(1.0)


def test_other_sizes_are_brought_to_one() -> None:
    """Enlarged as Pillow enlarges, bilinear; Pillow rounds to whole levels after each axis."""
    small = np.random.default_rng(1).integers(0, 256, (4, 4)).astype(np.uint8)
    larger = np.asarray(
        Image.fromarray(small).resize((8, 8), Image.Resampling.BILINEAR), np.float32
    )
    (block,) = Pixel((8, 8))(torch.from_numpy(small)[None, None].float() / 255)
    assert block.shape == (1, 3 * 64)
    expected = np.tile(larger.ravel() / 255, 3) / np.sqrt(3 * 64)
    np.testing.assert_allclose(block[0].numpy(), expected, atol=1.01 / 255 / np.sqrt(3 * 64))
