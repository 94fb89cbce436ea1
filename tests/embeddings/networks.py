"""LPIPS networks on random weights: ours and the authors' package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from unittest import mock

import lpips
import torch
from torch import nn

from inversight.embeddings.lpips import Lpips, Net, random_backbone
from tests.draws import rng


@cache
def backbone(net: Net) -> dict[str, torch.Tensor]:
    """Return random weights; no test may change them."""
    return random_backbone(net, rng(7))


@contextmanager
def uninitialised() -> Iterator[None]:
    """Leave out drawing the weights of layers: torchvision's whole VGG takes seconds."""
    names = ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "constant_")
    with mock.patch.multiple(nn.init, **dict.fromkeys(names, mock.DEFAULT)):
        yield


@cache
def network(net: Net, size: int = 64, dtype: torch.dtype = torch.float32) -> Lpips:
    """Return our network on :func:`backbone`, in float64 twice differentiable; no test may change it."""
    with uninitialised():
        made = Lpips(net, size=size, backbone=backbone(net), smooth=dtype == torch.float64)
    made._network.to(dtype)
    made._linear = [root.to(dtype) for root in made._linear]
    return made


def authors_with(net: Net, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Return the ``lpips`` package's network with ``state`` as its backbone."""
    with torch.random.fork_rng(devices=[]), uninitialised():
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
