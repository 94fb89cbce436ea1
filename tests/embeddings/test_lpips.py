"""``lpips-*`` against the authors' package with the same backbone weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
import torchvision
from torch.nn import functional as F

from inversight.core.errors import WeightsError
from inversight.embeddings import Embedding, named_embedding, squared_distances
from inversight.embeddings.lpips import _BACKBONE, Lpips, Net
from tests.draws import uniform
from tests.embeddings.networks import authors, backbone, network

NETS = get_args(Net)


@pytest.mark.parametrize("net", NETS)
def test_squared_distance_equals_lpips(net: Net) -> None:
    ours = network(net)
    assert isinstance(ours, Embedding) and ours.name == f"lpips-{net}"
    a, step = uniform(3, 3, 32, 32), uniform(3, 3, 32, 32, seed=1)
    b = (a + torch.tensor([0.02, 0.2, 1.0])[:, None, None, None] * step) / 2
    large = [
        2 * F.interpolate(x, (64, 64), mode="bilinear", align_corners=True) - 1 for x in (a, b)
    ]
    with torch.no_grad():
        found = squared_distances(ours(a), ours(b)).diag()
        expected = authors(net)(*large).flatten().double()
    assert (expected > 1e-4).all()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.0)


def test_repeats_grey_and_embeds_each_image_alone() -> None:
    grey = uniform(3, 1, 20, 20)
    whole, colour, one = map(network("squeeze"), (grey, grey.expand(-1, 3, -1, -1), grey[1:2]))
    for x, y, z in zip(whole, colour, one, strict=True):
        assert torch.equal(x, y)
        torch.testing.assert_close(x[1:2], z, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("net", NETS)
def test_parameters_have_the_published_names(net: Net) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(_BACKBONE[net])
    known = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in backbone(net).items()}.items() <= known.items()


def test_construction_keeps_the_global_random_state() -> None:
    before = torch.random.get_rng_state()
    Lpips("squeeze", backbone=backbone("squeeze"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_names_missing_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVERSIGHT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"lpips-alex.*weights import"):
        Lpips("alex")


def test_a_published_network_is_loaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(name: str) -> dict[str, torch.Tensor]:
        loaded.append(name)
        return backbone("squeeze")

    monkeypatch.setattr("inversight.embeddings.lpips.load_weights", load)
    monkeypatch.setenv("INVERSIGHT_WEIGHTS", str(tmp_path))
    named = partial(named_embedding, "lpips-squeeze", use="distance", role="--embedding", size=8)
    assert named() is named() and named(working_size=64) is named(working_size=64)
    assert named() is not named(working_size=64) and len(loaded) == 2
    # Other weights are another network.
    monkeypatch.setenv("INVERSIGHT_WEIGHTS", str(tmp_path / "others"))
    named()
    assert len(loaded) == 3
