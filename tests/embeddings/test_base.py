"""What embeddings have in common."""

from __future__ import annotations

import pytest
import torch

from inversight.embeddings import Remembering
from inversight.embeddings.pixel import Pixel
from tests.draws import uniform
from tests.examples import CountingPixels


def test_a_remembering_embedding_computes_the_features_of_an_image_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CountingPixels, "times", type(CountingPixels.times)())
    images, remembering = uniform(5, 1, 8, 8), Remembering(CountingPixels())
    for rows in ([2, 0, 2], [0, 1], [1]):
        (found,) = remembering(images[rows])
        assert torch.equal(found, torch.cat(Pixel((8, 8))(images[rows]), dim=1))
    assert sorted(CountingPixels.times.values()) == [1, 1, 1]
    remembering.full = True
    for rows in ([0, 3, 3], [3, 4]):
        assert torch.equal(remembering(images[rows])[0], Pixel((8, 8))(images[rows])[0])
    assert sorted(CountingPixels.times.values()) == [1, 1, 1, 1, 2]
