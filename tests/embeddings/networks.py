"""LPIPS networks on random weights: ours and the authors' package."""

from __future__ import annotations

from functools import cache

import lpips
import torch

from inversight.embeddings.lpips import Lpips, Net, Undrawn, random_backbone
from tests.draws import rng


@cache
def backbone(net: Net) -> dict[str, torch.Tensor]:
    """Return random weights; no test may change them."""
    return random_backbone(net, rng(7))


@cache
def network(net: Net, size: int = 64, dtype: torch.dtype = torch.float32) -> Lpips:
    """Return our network on :func:`backbone`, in float64 twice differentiable; no test may change it."""
    made = Lpips(net, size=size, backbone=backbone(net), smooth=dtype == torch.float64)
    made._network.to(dtype)
    made._linear = [root.to(dtype) for root in made._linear]
    return made


def authors_with(net: Net, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Return the ``lpips`` package's network with ``state`` as its backbone."""
    with Undrawn():
        model = lpips.LPIPS(net=net, pretrained=True, pnet_rand=True, verbose=False)
    with torch.no_grad():
        for name, value in model.net.named_parameters():
            _, _, rest = name.partition(".")  # sliceK.I.weight -> I.weight
            value.copy_(state[f"features.{rest}"])
    return model.eval()


@cache
def authors(net: Net, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Return the same on :func:`backbone`; no test may change it."""
    return authors_with(net, backbone(net)).to(dtype)
