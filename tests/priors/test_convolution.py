"""Convolutions that are differentiated more than once, against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from inversight.priors.convolution import convolution, transposed_convolution
from inversight.priors.penalties import r1_penalty
from inversight.priors.resampling import halve, make_filter
from tests.draws import normal

CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Any, tuple[int, ...]]] = {
    "plain": (convolution, F.conv2d, {}, (4, 3, 3, 3)),
    "padded": (convolution, F.conv2d, {"padding": 1}, (4, 3, 3, 3)),
    "halving": (convolution, F.conv2d, {"stride": 2}, (4, 3, 3, 3)),
    "doubling": (transposed_convolution, F.conv_transpose2d, {"stride": 2}, (3, 4, 3, 3)),
    "1x1": (convolution, F.conv2d, {}, (4, 3, 1, 1)),
    "grouped": (convolution, F.conv2d, {"stride": (1, 2), "groups": 3}, (3, 1, 2, 3)),
}


def drawn(*shape: int, seed: int) -> Tensor:
    return normal(*shape, seed=seed).requires_grad_(True)


@pytest.mark.parametrize("size", [5, 6])
@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_of_both_orders(name: str, size: int) -> None:
    ours, pytorchs, options, shape = CASES[name]
    x, weight = drawn(1, 3, size, size, seed=0), drawn(*shape, seed=1)

    def computed(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        """Return values, and the gradient of a penalty on a gradient."""
        y = function(x, weight, **options)
        (gradient,) = torch.autograd.grad(y.sigmoid().sum(), x, create_graph=True)
        return y, *torch.autograd.grad(gradient.square().sum(), (x, weight))

    for found, expected in zip(computed(ours), computed(pytorchs), strict=True):
        torch.testing.assert_close(found, expected)
    assert gradcheck(partial(ours, **options), (x, weight))
    assert gradgradcheck(partial(ours, **options), (x, weight), fast_mode=True)


def test_bias_and_partial_gradients() -> None:
    x, weight, bias = drawn(2, 3, 5, 5, seed=0), drawn(4, 3, 3, 3, seed=1), drawn(4, seed=2)
    y = convolution(x.detach(), weight, bias, padding=1)
    torch.testing.assert_close(y, F.conv2d(x, weight, bias, padding=1))
    (by_bias,) = torch.autograd.grad(y.square().sum(), bias, retain_graph=True)
    torch.testing.assert_close(by_bias, 2 * y.sum((0, 2, 3)))
    frozen = convolution(x, weight.detach())
    (by_x,) = torch.autograd.grad(frozen.sum(), x)
    torch.testing.assert_close(by_x, torch.autograd.grad(F.conv2d(x, weight).sum(), x)[0])


def test_follows_the_precision_of_an_autocast() -> None:
    x, weight = drawn(2, 3, 5, 5, seed=0).float(), drawn(4, 3, 3, 3, seed=1).float()
    x, weight = (t.detach().requires_grad_(True) for t in (x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = convolution(x, weight), F.conv2d(x, weight)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


class Convolutions(TorchDispatchMode):
    """Counts the convolutions that are carried out."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("taps", [(1.0, 3.0, 3.0, 1.0), tuple(range(1, 13))])
def test_a_penalty_does_not_convolve_channel_by_channel(taps: tuple[float, ...]) -> None:
    """PyTorch's own second derivative of a filter would, for the gradient of a filter that has none."""

    def needed(channels: int) -> int:
        images = torch.ones(1, channels, 16, 16, requires_grad=True)
        scale = torch.ones(channels, 1, 1, requires_grad=True)
        logits = halve(images * scale, make_filter(taps)).square().sum((1, 2, 3))
        with Convolutions() as counted:
            r1_penalty(logits, images).backward()
        assert scale.grad is not None
        return counted.count

    assert needed(1) == needed(12)
