"""``inception`` against torch-fidelity's network called directly, both with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from inversight.embeddings.inception import Inception, empty_network
from tests.draws import noise


def test_features_equal_torch_fidelitys(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    state = empty_network().state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    file = tmp_path / "weights.pth"
    torch.save(state, file)
    theirs = FeatureExtractorInceptionV3(
        "direct", ["2048"], feature_extractor_weights_path=str(file)
    )
    pixels = noise(2, 24)
    with torch.no_grad():
        (found,) = Inception(state=state)(pixels.float() / 255)
        (expected,) = theirs.eval()(pixels)
    assert found.shape == (2, 2048) and float(found.std()) > 0
    torch.testing.assert_close(found, expected.flatten(1))
