"""Jacobians of layers at given images as linear maps: J v and J^T u without a graph.

Convolution, normalisation by fixed statistics, ReLU and max pooling are linear once the masks at an
image are known. A product then costs the convolutions alone, in any precision; double backward through
PyTorch's graph takes more than twice as long (``benchmarks/natural_gradient.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
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

    def then(self, after: Jacobian) -> Jacobian:
        """Return the Jacobian of this function followed by another."""
        return Jacobian(lambda v: after.push(self.push(v)), lambda u: self.pull(after.pull(u)))


_IDENTITY = Jacobian(lambda v: v, lambda u: u)


def recorded(function: Map, x: Tensor) -> tuple[Tensor, Jacobian]:
    """Return ``function(x)`` and its Jacobian there, for any function differentiable twice.

    Reverse over reverse: u -> J^T u is linear, so its derivative gives J v. Both graphs are built once
    and used by every product.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        y = function(x)
        dual = torch.zeros_like(y).requires_grad_(True)
        (pulled,) = torch.autograd.grad(y, x, dual, create_graph=True)

    return y.detach(), Jacobian(
        push=lambda v: torch.autograd.grad(pulled, dual, v, retain_graph=True)[0],
        pull=lambda u: torch.autograd.grad(y, x, u, retain_graph=True)[0],
    )


def linearised(
    layers: Sequence[nn.Module], x: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Jacobian]:
    """Return the output of ``layers`` in sequence at ``x`` (N, C, H, W), and the Jacobian there.

    The Jacobian takes and returns ``dtype``, but its masks are computed at ``x`` in full precision: with
    masks computed in bfloat16, products are wrong by a third instead of 0.6 % (measured). Supports the
    layers in ``_rule``; batch normalisation must be in evaluation mode.
    """
    whole = _IDENTITY
    for layer in layers:
        x, part = _rule(type(layer))(layer, x, dtype)
        whole = whole.then(part)
    return x, whole


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
    enter: Map, images: Tensor, stages: Iterable[Sequence[nn.Module]],
    measure: Callable[[int, Tensor], tuple[Tensor, Tensor]], dtype: torch.dtype,
) -> Map:  # fmt: skip
    """Return v -> J^T J v at ``images`` of a network whose stages each give a block of features.

    ``enter`` leads from images to the first stage, and ``stages`` are the layers of each. ``measure``
    returns length and scale of a stage's maps, which :func:`unit_gram` turns into features. Products run
    in ``dtype``; J itself is exact. v has the dtype of the images.
    """
    x, entrance = recorded(enter, images)
    found: list[tuple[Jacobian, Map]] = []
    with torch.no_grad():
        for layers in stages:
            x, through = linearised(layers, x, dtype)
            found.append((through, unit_gram(x, *measure(len(found), x), dtype)))

    @torch.no_grad()
    def product(v: Tensor) -> Tensor:
        pushed = entrance.push(v).to(dtype, memory_format=torch.channels_last)
        features = []
        for through, gram in found:
            pushed = through.push(pushed)
            features.append(gram(pushed))
        pulled = torch.zeros_like(features[-1])
        for (through, _), back in zip(reversed(found), reversed(features), strict=True):
            pulled = through.pull(back.add_(pulled))
        return entrance.pull(pulled.to(v.dtype))

    return product


def _convolution(layer: nn.Conv2d, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Jacobian]:
    shape, weight = x.shape, layer.weight.to(dtype)
    given: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return layer(x), Jacobian(
        push=lambda v: F.conv2d(v, weight, None, *given),
        pull=lambda u: conv2d_input(shape, weight, u, *given),
    )


def _batch_norm(layer: nn.BatchNorm2d, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Jacobian]:
    zero = x.new_zeros(1, x.shape[1], 1, 1)
    slope: Tensor = (layer(zero + 1.0) - layer(zero)).to(dtype)
    return layer(x), Jacobian(slope.mul, slope.mul)


def _relu(layer: nn.ReLU, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Jacobian]:
    y = F.relu(x)
    passes = (y > 0).to(dtype)
    return y, Jacobian(lambda v: v.mul_(passes), lambda u: u.mul_(passes))


def _max_pool(layer: nn.MaxPool2d, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Jacobian]:
    y, index = F.max_pool2d(
        x, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode,
        return_indices=True,
    )  # fmt: skip
    (n, channels, *given), found = x.shape, y.shape[2:]
    # One pixel after another, the memory order of channels-last maps.
    where = _pixels(index)

    def pull(u: Tensor) -> Tensor:
        # Windows may overlap: contributions of several windows to one pixel add up.
        pulled = u.new_zeros(n, math.prod(given), channels)
        return _maps(pulled.scatter_add_(1, where, _pixels(u)), given)

    return y, Jacobian(lambda v: _maps(_pixels(v).gather(1, where), found), pull)


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
    channels = one.shape[1]
    both = Jacobian(
        push=lambda v: torch.cat([narrow.push(v), wide.push(v)], 1),
        pull=lambda u: narrow.pull(u[:, :channels]) + wide.pull(u[:, channels:]),
    )
    return torch.cat([one, three], 1), into.then(both)


def _residual(layer: ResidualBlock, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Jacobian]:
    x, into = linearised([layer.norm1, nn.ReLU()], x, dtype)
    right, long = linearised([layer.conv1, layer.norm2, nn.ReLU(), layer.conv2], x, dtype)
    if layer.shortcut is None:
        return right, into.then(long)
    left, short = linearised([layer.shortcut], x, dtype)
    both = Jacobian(
        push=lambda v: short.push(v) + long.push(v), pull=lambda u: short.pull(u) + long.pull(u)
    )
    return left + right, into.then(both)


_Rule = Callable[..., tuple[Tensor, Jacobian]]
_LAYERS: dict[type[nn.Module], _Rule] = {
    nn.Conv2d: _convolution, nn.BatchNorm2d: _batch_norm, nn.ReLU: _relu, nn.MaxPool2d: _max_pool,
    nn.Identity: lambda layer, x, dtype: (x, _IDENTITY), ResidualBlock: _residual,
}  # fmt: skip


def _rule(kind: type[nn.Module]) -> _Rule:
    """Return the rule that linearises a layer of this type; KeyError for an unknown one."""
    if kind in _LAYERS:
        return _LAYERS[kind]
    if issubclass(kind, nn.Sequential):
        return linearised
    from torchvision.models.squeezenet import Fire  # takes seconds, and few need it

    return {Fire: _fire}[kind]
