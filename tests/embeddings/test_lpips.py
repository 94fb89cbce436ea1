"""``lpips-*`` against the authors' package with the same backbone weights."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from inversight.core.errors import WeightsError
from inversight.embeddings import Embedding
from inversight.embeddings.lpips import Lpips, Net, backbone_shapes
from tests.embeddings.networks import authors, backbone

NETS = get_args(Net)


@pytest.mark.parametrize("net", NETS)
def test_squared_distance_is_the_packages_lpips(net: Net) -> None:
    state = backbone(net)
    ours, theirs = Lpips(net, size=64, backbone=state), authors(net)
    assert isinstance(ours, Embedding) and ours.name == f"lpips-{net}"
    rng = torch.Generator().manual_seed(0)
    a = torch.rand(3, 3, 32, 32, generator=rng)
    b = (
        a
        + torch.tensor([0.02, 0.2, 1.0])[:, None, None, None]
        * torch.rand(3, 3, 32, 32, generator=rng)
    ) / 2
    large = [
        2 * F.interpolate(x, (64, 64), mode="bilinear", align_corners=True) - 1 for x in (a, b)
    ]
    with torch.no_grad():
        found = sum(
            (x.double() - y.double()).square().sum(1) for x, y in zip(ours(a), ours(b), strict=True)
        )
        expected = theirs(*large).flatten().double()
    assert (expected > 1e-4).all()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.0)


def test_grey_is_repeated_and_rows_are_independent() -> None:
    embedding = Lpips("squeeze", size=64, backbone=backbone("squeeze"))
    grey = torch.rand(3, 1, 20, 20, generator=torch.Generator().manual_seed(2))
    whole = embedding(grey)
    for x, y in zip(whole, embedding(grey.expand(-1, 3, -1, -1)), strict=True):
        assert torch.equal(x, y)
    for x, y in zip(whole, embedding(grey[1:2]), strict=True):
        torch.testing.assert_close(x[1:2], y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("net", NETS)
def test_parameters_have_the_published_names(net: Net) -> None:
    import torchvision

    published = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}[net]
    with torch.device("meta"):
        model = torchvision.models.get_model(published)
    known = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    for name, shape in backbone_shapes(net).items():
        assert known[name] == shape


def test_building_leaves_the_global_random_state_alone() -> None:
    state = backbone("squeeze")
    before = torch.random.get_rng_state()
    Lpips("squeeze", backbone=state)
    assert torch.equal(before, torch.random.get_rng_state())


def test_missing_weights_are_named(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("INVERSIGHT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"lpips-alex.*weights import"):
        Lpips("alex")
