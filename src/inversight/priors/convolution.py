"""A convolution that can be differentiated as often as asked at the price of ordinary convolutions.

PyTorch's second derivative of a convolution always has the gradient of the weight in it, also where none
is asked for: one convolution for each group, with the whole map as its kernel. Of a filter over 512
channels that is 512 of them, for each penalty on a gradient (R1, path length).

With u of the output's shape, <u, x * w> is linear in each of u, x and w. Its three derivatives are the
convolution, the gradient of its input and that of its weight. Each of them, differentiated, is the
other two again, so that nothing else is ever needed. The published code does likewise.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

_Given = tuple[int | tuple[int, int], int, int, int]
"""Stride, padding, dilation and groups."""


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int = 0,
    groups: int = 1,
) -> Tensor:
    """``F.conv2d`` of x (N, C, H, W) and ``weight`` (O, C / groups, K, K): its values and derivatives."""
    x, weight = _cast(x, weight)
    y = cast(Tensor, _Output.apply(x, weight, (stride, padding, 1, groups)))
    return y if bias is None else y + bias.to(y.dtype)[:, None, None]


def transposed_convolution(x: Tensor, weight: Tensor, *, stride: int = 1) -> Tensor:
    """``F.conv_transpose2d`` of x (N, O, H, W) and ``weight`` (O, C, K, K), without padding."""
    x, weight = _cast(x, weight)
    height, width = ((size - 1) * stride + weight.shape[2] for size in x.shape[2:])
    shape = (len(x), weight.shape[1], height, width)
    return cast(Tensor, _Input.apply(x, weight, shape, (stride, 0, 1, 1)))


def _cast(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the precision of an autocast around them."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        return x.to(dtype), weight.to(dtype)
    return x, weight


class _Output(torch.autograd.Function):
    """(x, w) -> x * w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, given: _Given) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.given = given
        y: Tensor = F.conv2d(x, weight, None, *given)
        return y

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        to_x, to_weight, _ = ctx.needs_input_grad
        return (
            _Input.apply(u, weight, x.shape, ctx.given) if to_x else None,
            _Weight.apply(u, x, weight.shape, ctx.given) if to_weight else None,
            None,
        )


class _Input(torch.autograd.Function):
    """(u, w) -> the gradient of <u, x * w> by x, of ``shape``."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, weight: Tensor, shape: torch.Size, given: _Given) -> Tensor:
        ctx.save_for_backward(u, weight)
        ctx.given = given
        x: Tensor = conv2d_input(shape, weight, u, *given)
        return x

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> Any:
        u, weight = ctx.saved_tensors
        to_u, to_weight, *_ = ctx.needs_input_grad
        return (
            _Output.apply(x, weight, ctx.given) if to_u else None,
            _Weight.apply(u, x, weight.shape, ctx.given) if to_weight else None,
            None,
            None,
        )


class _Weight(torch.autograd.Function):
    """(u, x) -> the gradient of <u, x * w> by w, of ``shape``."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, x: Tensor, shape: torch.Size, given: _Given) -> Tensor:
        ctx.save_for_backward(u, x)
        ctx.given = given
        weight: Tensor = conv2d_weight(x, shape, u, *given)
        return weight

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> Any:
        u, x = ctx.saved_tensors
        to_u, to_x, *_ = ctx.needs_input_grad
        return (
            _Output.apply(x, weight, ctx.given) if to_u else None,
            _Input.apply(u, weight, x.shape, ctx.given) if to_x else None,
            None,
            None,
        )
