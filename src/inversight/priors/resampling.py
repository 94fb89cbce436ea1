"""Doubling and halving of images and features, alone and together with a convolution.

StyleGAN2 resamples by inserting zeros, filtering and dropping samples (Karras et al. 2020, "Analyzing
and Improving", appendix B). Here this takes ordinary convolutions, which run on every device and have
derivatives of any order. With ``taps=None`` resampling is cheaper: bilinear doubling, which equals the
filter [1, 3, 3, 1] except at the border, and means of 2x2 pixels. Tensors are (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.priors.convolution import convolution, transposed_convolution

_SEPARABLE = 8
"""Number of taps from which two one-dimensional filters replace a two-dimensional one."""


def make_filter(taps: Sequence[float]) -> Tensor:
    """Return the filter of sum 1 with these taps: (T, T), or (T,) to apply along each axis if T >= 8."""
    line = torch.tensor(taps, dtype=torch.float32)
    line = line / line.sum()
    return line if len(line) >= _SEPARABLE else torch.outer(line, line)


def upfirdn(
    x: Tensor, taps: Tensor, *, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0),
    gain: float = 1.0,
) -> Tensor:  # fmt: skip
    """Insert up - 1 zeros after each sample, pad, convolve with ``taps``, keep every down-th sample.

    ``pad``: samples added before and after on both axes, counted after the insertion; negative values
    crop. H becomes (H up + sum(pad) - T) // down + 1.
    """
    if up > 1:
        spread = x.new_zeros((*x.shape[:2], x.shape[2] * up, x.shape[3] * up))
        spread[..., ::up, ::up] = x
        x = spread
    x = F.pad(x, (*pad, *pad))
    channels = x.shape[1]
    # Flipped, since conv2d correlates; the gain is shared by both passes of a separable filter.
    kernel = (taps * gain ** (taps.dim() / 2)).flip(*range(taps.dim())).to(x.dtype)
    if kernel.dim() == 2:
        return _filtered(x, kernel.expand(channels, 1, -1, -1), (down, down))
    line = kernel.expand(channels, 1, 1, -1)
    return _filtered(_filtered(x, line, (1, down)), line.transpose(2, 3), (down, 1))


def double(x: Tensor, taps: Tensor | None) -> Tensor:
    """Double height and width."""
    if taps is None:
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    t = len(taps)
    return upfirdn(x, taps, up=2, pad=((t + 1) // 2, (t - 2) // 2), gain=4.0)


def halve(x: Tensor, taps: Tensor | None) -> Tensor:
    """Halve height and width."""
    if taps is None:
        return F.avg_pool2d(x, 2)
    t = len(taps)
    return upfirdn(x, taps, down=2, pad=((t - 1) // 2, (t - 2) // 2))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Correlate with ``weight`` (O, C, K, K), K odd, at the same height and width."""
    return _correlation(x, weight)(x, weight, bias, padding=weight.shape[2] // 2)


def convolve_doubled(x: Tensor, weight: Tensor, taps: Tensor | None) -> Tensor:
    """Double, then convolve with ``weight`` (O, C, K, K), flipped as in published networks.

    The transposed convolution inserts the zeros, so only the filter runs at full size.
    """
    k = weight.shape[2]
    if taps is None or k == 1:
        return double(convolve(x, weight), taps)
    t = len(taps)
    y = _correlation(x, weight, transposed=True)(x, weight.transpose(0, 1), stride=2)
    pad = ((t + 1) // 2 - k // 2, (t - 2) // 2 - k // 2 + 1)
    return upfirdn(y, taps, pad=pad, gain=4.0)


def convolve_halved(
    x: Tensor, weight: Tensor, taps: Tensor | None, bias: Tensor | None = None
) -> Tensor:
    """Convolve with ``weight`` (O, C, K, K), then halve; computed at half size only."""
    k = weight.shape[2]
    if taps is None or k == 1:
        return convolve(halve(x, taps), weight, bias)
    t = len(taps)
    y = upfirdn(x, taps, pad=(k // 2 + (t - 1) // 2, k // 2 + (t - 2) // 2))
    return _correlation(y, weight)(y, weight, bias, stride=2)


def _filtered(x: Tensor, kernel: Tensor, stride: tuple[int, int]) -> Tensor:
    """Convolve each channel with its own row of ``kernel`` (C, 1, K, K), which is never trained."""
    # PyTorch's own convolution is faster where no second derivative is needed, and compiles better.
    if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
        return convolution(x, kernel, stride=stride, groups=len(kernel))
    return F.conv2d(x, kernel, stride=stride, groups=len(kernel))


def _correlation(x: Tensor, weight: Tensor, *, transposed: bool = False) -> Callable[..., Tensor]:
    """Return the operation to use for a trained weight: on a CPU PyTorch's own, a fifth faster (measured)."""
    if x.is_cuda and torch.is_grad_enabled() and weight.requires_grad:
        return transposed_convolution if transposed else convolution
    return F.conv_transpose2d if transposed else F.conv2d
