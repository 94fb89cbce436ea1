"""``lpips-*``: Learned Perceptual Image Patch Similarity (Zhang et al. 2018) as an embedding.

The network and its linear weights (version 0.1) are torchmetrics'; LPIPS is a squared distance of
its scaled, normalised features (METHOD section 1).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.image.lpips import _normalize_tensor, _NoTrainLpips

from inversight.imaging import fit
from inversight.weights import load_weights

Net = Literal["vgg", "alex", "squeeze"]
_BACKBONE = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}


class Lpips:
    """Blocks phi_l = sqrt(w_l / (H_l W_l)) f_l, flattened, f_l of unit length over channels.

    ``d(x, y)`` >= 0 equals LPIPS(x, y). Images are resized to ``size`` (the paper: 256), bilinear
    with align_corners and without antialiasing, on both sides.

    Raises:
        WeightsError: the backbone's published weights are missing.
    """

    def __init__(
        self, net: Net, *, size: int = 256, backbone: dict[str, Tensor] | None = None
    ) -> None:
        self.net: Net = net
        self.size = size
        state = load_weights(_BACKBONE[net]) if backbone is None else backbone
        self._network = empty_network(net)
        _load_backbone(self._network, state)
        self._linear = [
            layer.model[-1].weight.detach().clamp_min(0.0).sqrt() for layer in self._network.lins
        ]

    @property
    def name(self) -> str:
        return f"lpips-{self.net}"

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        x = fit(images, size=(images.shape[2], images.shape[3]), channels=3)
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=True)
        self._network.to(x.device)
        maps = self._network.net(self._network.scaling_layer(2.0 * x - 1.0))
        blocks = []
        for f, root in zip(maps, self._linear, strict=True):
            scale = root.to(x.device) / math.sqrt(f.shape[2] * f.shape[3])
            blocks.append((_normalize_tensor(f) * scale).flatten(1))
        return tuple(blocks)


def empty_network(net: Net) -> Any:
    """torchmetrics' LPIPS network with its linear weights and a random backbone; draws nothing from
    the global random state."""
    with torch.random.fork_rng(devices=[]):
        network = _NoTrainLpips(net=net, pnet_rand=True, pretrained=True)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # a second derivative needs the values before
    return network.eval().requires_grad_(False)


def random_backbone(net: Net, rng: torch.Generator) -> dict[str, Tensor]:
    """Backbone weights drawn from ``rng`` (He normal), for tests and benchmarks without weights."""
    state = {}
    for name, value in backbone_shapes(net).items():
        drawn = torch.randn(value, generator=rng)
        fan_in = math.prod(value[1:]) if len(value) > 1 else 100
        state[name] = drawn * math.sqrt(2.0 / fan_in)
    return state


def backbone_shapes(net: Net) -> dict[str, tuple[int, ...]]:
    """torchvision's names (``features.*``) and shapes of the backbone's parameters."""
    network = empty_network(net)
    return {_published(name): tuple(v.shape) for name, v in network.net.state_dict().items()}


def _published(name: str) -> str:
    """torchmetrics' ``sliceK.I.weight`` or ``slices.K.I.weight`` -> ``features.I.weight``."""
    parts = name.split(".")
    return ".".join(["features", *parts[2 if parts[0] == "slices" else 1 :]])


def _load_backbone(network: Any, state: dict[str, Tensor]) -> None:
    names = network.net.state_dict().keys()
    network.net.load_state_dict({name: state[_published(name)] for name in names})
