"""Jacobians of layers at given images as linear maps: J v and J^T u without a graph.

Convolution, normalisation by fixed statistics, ReLU and max pooling are linear once the masks at an
image are known. A product then costs the convolutions alone, in any precision; double backward through
PyTorch's graph takes more than twice as long (``benchmarks/natural_gradient.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from inversight.models.networks import ResidualBlock

if TYPE_CHECKING:
    from torchvision.models.squeezenet import Fire

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Jacobian:
    """The Jacobian J of a function at one point: ``push`` maps v to J v, ``pull`` maps u to J^T u.

    Both may overwrite their input.
    """

    push: Map
    pull: Map


def recorded(function: Map, x: Tensor) -> tuple[Tensor, Jacobian]:
    """Return ``function(x)`` and its Jacobian there, for any function differentiable twice.

    Reverse over reverse: u -> J^T u is linear, so its derivative gives J v. Both graphs are built once
    and reused by every product.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        y = function(x)
        dual = torch.zeros_like(y).requires_grad_(True)
        (pulled,) = torch.autograd.grad(y, x, dual, create_graph=True)

    def push(v: Tensor) -> Tensor:
        (jv,) = torch.autograd.grad(pulled, dual, v, retain_graph=True)
        return jv

    def pull(u: Tensor) -> Tensor:
        (jtu,) = torch.autograd.grad(y, x, u, retain_graph=True)
        return jtu

    return y.detach(), Jacobian(push, pull)


def linearised(
    layers: Sequence[nn.Module], x: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Jacobian]:
    """Return the output of ``layers`` in sequence at ``x`` (N, C, H, W), and the Jacobian there.

    The Jacobian takes and returns ``dtype``, but its masks are computed at ``x`` in full precision: masks
    computed in bfloat16 are those of another image (measured: products are off by a third instead of
    0.6 %). Supported are the layers in ``_rule`` and sequences of them; batch normalisation in evaluation
    mode.
    """
    parts = []
    for layer in layers:
        if isinstance(layer, nn.Sequential):
            x, part = linearised(list(layer), x, dtype)
        else:
            x, part = _rule(type(layer))(layer, x, dtype)
        parts.append(part)

    def push(v: Tensor) -> Tensor:
        for part in parts:
            v = part.push(v)
        return v

    def pull(u: Tensor) -> Tensor:
        for part in reversed(parts):
            u = part.pull(u)
        return u

    return x, Jacobian(push, pull)


def unit_gram(f: Tensor, length: Tensor, scale: Tensor, dtype: torch.dtype) -> Map:
    """Return v -> J^T J v of f -> ``scale`` * f / |f|: unit vectors over channels, each channel weighted.

    f (N, C, H, W); ``length`` (N, 1, H, W) is |f|, positive; ``scale`` (1, C, 1, 1). The unit
    vector's own Jacobian is (I - u u^T) / |f| with u = f / |f|, which is symmetric. v is of ``dtype``.
    """
    unit, weight, inverse = (
        part.to(dtype) for part in (f / length, scale.square(), length.square().reciprocal())
    )

    def across(v: Tensor) -> Tensor:
        return torch.addcmul(v, unit, (unit * v).sum(1, keepdim=True), value=-1.0)

    return lambda v: across(across(v).mul_(weight)).mul_(inverse)


def staged_gram(
    entrance: Jacobian, stages: Sequence[tuple[Jacobian, Map]], dtype: torch.dtype
) -> Map:
    """Return v -> J^T J v of consecutive stages that each have features of their own.

    ``entrance`` leads from images to the first stage. Each stage has the Jacobian of its layers and the
    map J^T J from its output to its features. Both work in ``dtype``; v has the dtype of the images.
    """

    @torch.no_grad()
    def product(v: Tensor) -> Tensor:
        pushed = entrance.push(v).to(dtype, memory_format=torch.channels_last)
        features = []
        for through, gram in stages:
            pushed = through.push(pushed)
            features.append(gram(pushed))
        pulled = torch.zeros_like(features[-1])
        for (through, _), back in zip(reversed(stages), reversed(features), strict=True):
            pulled = through.pull(back.add_(pulled))
        return entrance.pull(pulled.to(v.dtype))

    return product


def _convolution(layer: nn.Conv2d, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Jacobian]:
    shape, weight = x.shape, layer.weight.to(dtype)
    given: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def push(v: Tensor) -> Tensor:
        return F.conv2d(v, weight, None, *given)

    def pull(u: Tensor) -> Tensor:
        pulled: Tensor = conv2d_input(shape, weight, u, *given)
        return pulled

    return layer(x), Jacobian(push, pull)


def _batch_norm(layer: nn.BatchNorm2d, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Jacobian]:
    zero = x.new_zeros(1, x.shape[1], 1, 1)
    slope: Tensor = (layer(zero + 1.0) - layer(zero)).to(dtype)

    def scale(v: Tensor) -> Tensor:
        return v * slope

    return layer(x), Jacobian(scale, scale)


def _identity(layer: nn.Identity, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Jacobian]:
    return x, Jacobian(lambda v: v, lambda u: u)


def _relu(layer: nn.ReLU, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Jacobian]:
    y = F.relu(x)
    passes = (y > 0).to(dtype)

    def mask(v: Tensor) -> Tensor:
        return v.mul_(passes)

    return y, Jacobian(mask, mask)


def _max_pool(layer: nn.MaxPool2d, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Jacobian]:
    y, index = F.max_pool2d(
        x, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode,
        return_indices=True,
    )  # fmt: skip
    (n, channels, *given), found = x.shape, y.shape[2:]
    # Pixel by pixel, the memory order of channels-last maps.
    where = _pixels(index)

    def push(v: Tensor) -> Tensor:
        return _maps(_pixels(v).gather(1, where), found)

    def pull(u: Tensor) -> Tensor:
        # Windows may overlap: contributions of several windows to one pixel add up.
        pulled = u.new_zeros(n, math.prod(given), channels)
        return _maps(pulled.scatter_add_(1, where, _pixels(u)), given)

    return y, Jacobian(push, pull)


def _pixels(maps: Tensor) -> Tensor:
    """Convert (N, C, H, W) to (N, H W, C)."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def _maps(pixels: Tensor, size: Sequence[int]) -> Tensor:
    """Convert (N, H W, C) to (N, C, H, W)."""
    maps: Tensor = pixels.unflatten(1, tuple(size)).permute(0, 3, 1, 2)
    return maps


def _fire(layer: Fire, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Jacobian]:
    x, into = linearised([layer.squeeze, layer.squeeze_activation], x, dtype)
    one, narrow = linearised([layer.expand1x1, layer.expand1x1_activation], x, dtype)
    three, wide = linearised([layer.expand3x3, layer.expand3x3_activation], x, dtype)
    sizes = [one.shape[1], three.shape[1]]

    def push(v: Tensor) -> Tensor:
        v = into.push(v)
        return torch.cat([narrow.push(v), wide.push(v)], 1)

    def pull(u: Tensor) -> Tensor:
        left, right = u.split(sizes, 1)
        return into.pull(narrow.pull(left) + wide.pull(right))

    return torch.cat([one, three], 1), Jacobian(push, pull)


def _residual(layer: ResidualBlock, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Jacobian]:
    x, into = linearised([layer.norm1, nn.ReLU()], x, dtype)
    left, short = linearised([layer.shortcut], x, dtype)
    right, long = linearised([layer.conv1, layer.norm2, nn.ReLU(), layer.conv2], x, dtype)

    def push(v: Tensor) -> Tensor:
        v = into.push(v)
        return short.push(v) + long.push(v)

    def pull(u: Tensor) -> Tensor:
        return into.pull(short.pull(u) + long.pull(u))

    return left + right, Jacobian(push, pull)


_Rule = Callable[..., tuple[Tensor, Jacobian]]
_LAYERS: dict[type[nn.Module], _Rule] = {
    nn.Conv2d: _convolution, nn.BatchNorm2d: _batch_norm, nn.ReLU: _relu, nn.Identity: _identity,
    nn.MaxPool2d: _max_pool, ResidualBlock: _residual,
}  # fmt: skip


def _rule(kind: type[nn.Module]) -> _Rule:
    """Return the rule that linearises a layer of this type; KeyError for an unknown one."""
    if kind in _LAYERS:
        return _LAYERS[kind]
    from torchvision.models.squeezenet import Fire  # takes seconds, and few need it

    return {Fire: _fire}[kind]
