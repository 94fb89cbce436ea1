"""``lpips-*``: Learned Perceptual Image Patch Similarity (Zhang et al. 2018) as an embedding.

The network and its linear weights (version 0.1) are torchmetrics'; LPIPS is a squared distance of
its scaled, normalised features.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torchmetrics.functional.image.lpips import _NoTrainLpips

from inversight.core.imaging import fit
from inversight.embeddings.linearised import Map, staged_gram
from inversight.embeddings.weights import load_weights

Net = Literal["vgg", "alex", "squeeze"]
_BACKBONE = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}


# Added to the root of the squared norm; the authors' package does the same (v0.1).
_EPSILON = 1e-10
# Added under the root instead where second derivatives are needed: at a position whose channels are
# all zero the root's own are infinite. Changes a distance by about 1e-8 of itself.
_SMOOTH = 1e-8


class Lpips:
    """Blocks phi_l = sqrt(w_l / (H_l W_l)) f_l, flattened, f_l of unit length over channels.

    ``d(x, y)`` >= 0 equals LPIPS(x, y). Images are resized to ``size`` (the paper: 256), bilinear
    with align_corners and without antialiasing, on both sides. ``smooth`` makes it differentiable
    twice everywhere, which guidance needs and scores do not.

    A :class:`inversight.embeddings.StagedEmbedding`: distances can be computed layer by layer, so that
    an image's 35 MB of features (VGG at 256) are never in memory together.

    Raises:
        WeightsError: the backbone's published weights are missing.
    """

    def __init__(
        self, net: Net, *, size: int = 256, backbone: dict[str, Tensor] | None = None,
        smooth: bool = False,
    ) -> None:  # fmt: skip
        self.net: Net = net
        self.size, self.smooth = size, smooth
        state = load_weights(_BACKBONE[net]) if backbone is None else backbone
        self._network = empty_network(net)
        names = self._network.net.state_dict()
        self._network.net.load_state_dict({name: state[_published(name)] for name in names})
        # Channels-last suits convolution and normalisation over channels (a tenth faster on a CPU).
        self._network.to(memory_format=torch.channels_last)
        self._linear = [
            layer.model[-1].weight.detach().clamp_min(0.0).sqrt() for layer in self._network.lins
        ]
        self._entries, self._stages = _staged(self._network.net)

    @property
    def name(self) -> str:
        return f"lpips-{self.net}"

    def batch_size(self, device: torch.device) -> int:
        """Return the batch size at which the network is fastest (measured)."""
        if device.type != "cpu":
            return 8  # from 16 on, cuDNN may choose an algorithm that is several times slower
        return 1 if self.net == "vgg" else 4

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        blocks: list[Tensor] = []
        state: Tensor | None = self.enter(images)
        while state is not None:
            state, f = self.advance(len(blocks), state)
            blocks.append((f / self._length(f) * self._scale(len(blocks), f)).flatten(1))
        return tuple(blocks)

    def enter(self, images: Tensor) -> Tensor:
        """Return the input of the first stage: resized and normalised images."""
        x = fit(images, size=(images.shape[2], images.shape[3]), channels=3)
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=True)
        if next(self._network.parameters()).device != x.device:
            self._network.to(x.device)
            self._linear = [root.to(x.device) for root in self._linear]
        scaled: Tensor = self._network.scaling_layer(2.0 * x - 1.0)
        return scaled.contiguous(memory_format=torch.channels_last)

    def advance(self, stage: int, state: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the next stage's input (None after the last) and this stage's maps."""
        f = self._stages[stage](state)
        return (self._entries[stage + 1](f) if stage + 1 < len(self._stages) else None), f

    def refer(self, stage: int, maps: Tensor, reference: Tensor) -> None:
        """Write one image's negative unit features, without the layer's weights, to ``reference``."""
        pixels = maps[0].permute(1, 2, 0).flatten(0, 1)
        torch.mul(pixels, _inverse_length(pixels).neg_(), out=reference.view(pixels.shape))

    def write(self, stage: int, maps: Tensor, reference: Tensor, out: Tensor) -> None:
        """Write the block of ``maps`` (N, C, H, W) less the reference's to ``out`` (N, D)."""
        n, channels, height, width = maps.shape
        pixels = maps.permute(0, 2, 3, 1).reshape(n, height * width, channels)
        target = out.unflatten(1, (height * width, channels))
        less = reference.view(1, height * width, channels)
        torch.addcmul(less, pixels, _inverse_length(pixels), out=target)
        target.mul_(self._scale(stage, maps).view(channels))

    def gram(self, images: Tensor, dtype: torch.dtype) -> Map:
        """Return v -> J^T J v at ``images``, all (N, C, H, W), with J the Jacobian of this embedding.

        Products run in ``dtype``; J itself is exact. ``smooth`` makes no difference, because no
        derivative is taken by PyTorch.
        """
        stages = zip(self._entries, self._stages, strict=True)
        return staged_gram(
            self.enter, images, stages, lambda i, f: (self._length(f), self._scale(i, f)), dtype
        )

    def _length(self, f: Tensor) -> Tensor:
        """Return each position's length over channels, (N, C, H, W) -> (N, 1, H, W), positive."""
        square = f.square().sum(1, keepdim=True)
        return (square + _SMOOTH).sqrt() if self.smooth else square.sqrt() + _EPSILON

    def _scale(self, stage: int, f: Tensor) -> Tensor:
        scale: Tensor = self._linear[stage] / math.sqrt(f.shape[2] * f.shape[3])
        return scale


def _inverse_length(pixels: Tensor) -> Tensor:
    """Return the inverse of each pixel's length over channels, (..., C) -> (..., 1)."""
    length: Tensor = torch.linalg.vector_norm(pixels, dim=-1, keepdim=True)
    return length.add_(_EPSILON).reciprocal_()


def _staged(network: Any) -> tuple[list[nn.Sequential], list[nn.Sequential]]:
    """Return the layers that lead into each stage, and those of the stage.

    Pooling comes first: it shrinks what is kept between stages.
    """
    entries, stages = [], []
    for layers in map(list, getattr(network, "slices", network.children())):
        pooled = 1 if isinstance(layers[0], nn.MaxPool2d) else 0
        entries.append(nn.Sequential(*layers[:pooled]))
        stages.append(nn.Sequential(*layers[pooled:]))
    return entries, stages


class Undrawn(TorchFunctionMode):
    """In this context new layers have whatever weights; to draw those of a whole VGG takes seconds."""

    _DRAWING = ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_")

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in self._DRAWING:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def empty_network(net: Net) -> Any:
    """Return torchmetrics' LPIPS network with its linear weights; the backbone's are to be loaded."""
    with Undrawn():
        network = _NoTrainLpips(net=net, pnet_rand=True, pretrained=True)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # a second derivative needs the values before
    return network.eval().requires_grad_(False)


def random_backbone(net: Net, rng: torch.Generator) -> dict[str, Tensor]:
    """Return backbone weights drawn from ``rng`` (He normal), for tests and benchmarks."""
    state = {}
    for name, value in empty_network(net).net.state_dict().items():
        fan_in = math.prod(value.shape[1:]) if value.dim() > 1 else 100
        drawn = torch.randn(value.shape, generator=rng)
        state[_published(name)] = drawn * math.sqrt(2.0 / fan_in)
    return state


def _published(name: str) -> str:
    """Convert torchmetrics' ``sliceK.I.weight`` or ``slices.K.I.weight`` to ``features.I.weight``."""
    parts = name.split(".")
    return ".".join(["features", *parts[2 if parts[0] == "slices" else 1 :]])
