"""``inception`` against torch-fidelity's network called directly, both with random weights."""

from __future__ import annotations

import torch

from inversight.embeddings.inception import Inception, empty_network


def test_features_are_torch_fidelitys(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    before = torch.random.get_rng_state()
    state = empty_network().state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.save(state, tmp_path / "weights.pth")
    theirs = FeatureExtractorInceptionV3(
        "direct", ["2048"], feature_extractor_weights_path=str(tmp_path / "weights.pth")
    ).eval()
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 24, 24), generator=rng, dtype=torch.uint8)
    with torch.no_grad():
        (found,) = Inception(state=state)(pixels.float() / 255)
        (expected,) = theirs(pixels)
    assert found.shape == (2, 2048)
    assert float(found.std()) > 0
    torch.testing.assert_close(found, expected.flatten(1))
