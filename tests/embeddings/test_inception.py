"""``inception`` against torch-fidelity's network called directly, both with random weights."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from inversight.embeddings.inception import Inception
from tests.draws import noise


def test_features_equal_torch_fidelitys(tmp_path: Path) -> None:
    file = tmp_path / "nothing.pth"
    torch.save({}, file)
    with mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
        theirs = FeatureExtractorInceptionV3(
            "direct", ["2048"], feature_extractor_weights_path=str(file)
        )
    before = torch.random.get_rng_state()
    ours = Inception(state=theirs.state_dict())
    assert torch.equal(before, torch.random.get_rng_state())
    pixels = noise(2, 24)
    with torch.no_grad():
        (found,) = ours(pixels.float() / 255)
        (expected,) = theirs(pixels)
    assert found.shape == (2, 2048) and float(found.std()) > 0
    torch.testing.assert_close(found, expected.flatten(1))
