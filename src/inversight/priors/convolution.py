"""A convolution whose derivatives of any order cost as much as ordinary convolutions.

PyTorch's second derivative of a convolution always computes the gradient of the weight, even if it is not
needed: one convolution for each group, with the whole map as its kernel. For a filter over 512 channels
these are 512 convolutions, for each penalty on a gradient (R1, path length).

With u of the output's shape, <u, x * w> is linear in each of u, x and w. Its three derivatives are the
convolution, the gradient of its input and that of its weight. The derivatives of each of them are the
other two, so no other function is needed. The published code does the same.
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
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int | tuple[int, int] = 1,
    padding: int = 0, groups: int = 1,
) -> Tensor:  # fmt: skip
    """Return ``F.conv2d`` of x (N, C, H, W) and ``weight`` (O, C / groups, K, K)."""
    x, weight = _cast(x, weight)
    y = cast(Tensor, _Derivative.apply("u", None, (stride, padding, 1, groups), x, weight))
    return y if bias is None else y + bias.to(y.dtype)[:, None, None]


def transposed_convolution(x: Tensor, weight: Tensor, *, stride: int = 1) -> Tensor:
    """Return ``F.conv_transpose2d`` of x (N, O, H, W) and ``weight`` (O, C, K, K), without padding."""
    x, weight = _cast(x, weight)
    height, width = ((size - 1) * stride + weight.shape[2] for size in x.shape[2:])
    shape = (len(x), weight.shape[1], height, width)
    return cast(Tensor, _Derivative.apply("x", shape, (stride, 0, 1, 1), x, weight))


def _cast(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Convert both to the precision of the enclosing autocast."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        return x.to(dtype), weight.to(dtype)
    return x, weight


class _Derivative(torch.autograd.Function):
    """The derivative of <u, x * w> by ``name``, one of u, x and w, of ``shape``, given the other two."""

    @staticmethod
    def forward(
        ctx: Any, name: str, shape: torch.Size | None, given: _Given, *others: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*others)
        ctx.name, ctx.given = name, given
        first, second = others
        if name == "u":
            return F.conv2d(first, second, None, *given)
        if name == "x":
            derivative: Tensor = conv2d_input(shape, second, first, *given)
        else:
            derivative = conv2d_weight(second, shape, first, *given)
        return derivative

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        others = [name for name in "uxw" if name != ctx.name]
        known = {ctx.name: gradient, **dict(zip(others, ctx.saved_tensors, strict=True))}
        derivatives: list[Any] = [None, None, None]
        for name, needed in zip(others, ctx.needs_input_grad[3:], strict=True):
            rest = [known[n] for n in "uxw" if n != name]
            shape = known[name].shape
            derivatives.append(_Derivative.apply(name, shape, ctx.given, *rest) if needed else None)
        return tuple(derivatives)
