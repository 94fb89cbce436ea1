"""``pixel`` against the mean squared error by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from inversight.embeddings import Embedding, squared_distances
from inversight.embeddings.pixel import Pixel
from tests.draws import noise, uniform


@pytest.mark.parametrize("channels", [1, 3])
def test_distance_is_the_mean_squared_error(channels: int) -> None:
    a, b = uniform(4, channels, 6, 6), uniform(3, channels, 6, 6, seed=1)
    embedding = Pixel((6, 6))
    assert isinstance(embedding, Embedding)
    expected = (a[:, None].double() - b[None]).square().mean((2, 3, 4))
    torch.testing.assert_close(
        squared_distances(embedding(a), embedding(b)), expected, rtol=1e-5, atol=0
    )


def test_the_largest_distance_is_one() -> None:
    black, white = map(Pixel((8, 8)), (torch.zeros(1, 1, 8, 8), torch.ones(1, 3, 8, 8)))
    assert float(squared_distances(black, white)) == pytest.approx(1.0)


def test_resizes_as_pillow_does() -> None:
    """Bilinear; Pillow rounds to whole levels after each axis."""
    small = noise(1, 4, 1)
    larger = Image.fromarray(small[0, 0].numpy()).resize((8, 8), Image.Resampling.BILINEAR)
    (block,) = Pixel((8, 8))(small.float() / 255)
    expected = np.tile(np.asarray(larger, np.float32).ravel() / 255, 3) / np.sqrt(3 * 64)
    np.testing.assert_allclose(block[0].numpy(), expected, atol=1.01 / 255 / np.sqrt(3 * 64))
