"""Layers of StyleGAN2 (Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN").

Weights have an equalised learning rate: they are drawn from N(0, 1) and scaled when used (Karras et
al. 2018, section 4.1). Parameters and buffers are named and shaped as in the published networks.
A layer works in the precision of its input; parameters are kept in their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.core.errors import InputError
from inversight.priors.architecture import STANDARD_TAPS, Architecture
from inversight.priors.resampling import (
    convolve,
    convolve_doubled,
    convolve_halved,
    double,
    make_filter,
)

NoiseMode = Literal["random", "const", "none"]
"""Noise drawn for each image, the generator's constant noise, or none at all."""

_GAIN = math.sqrt(2.0)


@torch.no_grad()
def draw(layer: nn.Module, rng: torch.Generator) -> None:
    """Draw the initial weights and the constant noise of one layer from N(0, 1)."""
    tensors = dict(layer.named_parameters()) | dict(layer.named_buffers())
    for name in ("const", "noise_const", "affine.weight", "weight"):
        if name in tensors:
            drawn = torch.randn(tensors[name].shape, generator=rng)
            tensors[name].copy_(drawn * (1.0 / getattr(layer, "rate", 1.0)))


def activate(x: Tensor, clamp: float | None = None) -> Tensor:
    """Apply a leaky ReLU of slope 0.2, multiply by sqrt(2) to keep the variance, and clamp.

    ``clamp``: largest absolute value of the result; None for no limit.
    """
    return _rectify(x * _GAIN, clamp)


def _rectify(x: Tensor, clamp: float | None) -> Tensor:
    """Activate x in place, which is multiplied by the gain already: leaky_relu(g x) = g leaky_relu(x)."""
    y = F.leaky_relu(x, 0.2, inplace=True)
    return y if clamp is None else y.clamp(-clamp, clamp)


def modulated(
    x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor, *, demodulate: bool = True,
    gain: float = 1.0, convolution: Callable[[Tensor, Tensor], Tensor] = convolve,
) -> Tensor:  # fmt: skip
    """Convolve x (N, C, H, W) with ``weight`` (O, C, K, K) modulated by styles (N, C) (eq. 1-3).

    Scales the input and the output instead of the weights of each image (their section 2.2). The
    result is the same, without grouped convolutions, which are slow on a CPU. ``bias`` (O,) or
    (N, O, H, W) is added, and the sum multiplied by ``gain``, in the same pass as the demodulation.
    """
    scale = 1.0 / math.sqrt(weight[0].numel())
    weight = weight * scale
    if demodulate and x.dtype == torch.float16:
        # Demodulation cancels any scale of styles and weights; this one prevents float16 overflow.
        weight = weight * (scale / weight.detach().abs().amax((1, 2, 3), keepdim=True))
        styles = styles / styles.detach().abs().amax(1, keepdim=True)
    y = convolution(x * styles[:, :, None, None].to(x.dtype), weight.to(x.dtype))
    added = ((bias[:, None, None] if bias.dim() == 1 else bias) * gain).to(x.dtype)
    if not demodulate:
        return torch.add(added, y, alpha=gain)
    power = weight.square().sum(dim=(2, 3))
    factor = (styles.square() @ power.T + 1e-8).rsqrt() * gain
    return torch.addcmul(added, y, factor[:, :, None, None].to(x.dtype))


class FullyConnected(nn.Module):
    """Fully connected layer; ``rate`` multiplies its learning rate."""

    def __init__(self, fan_in: int, fan_out: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(fan_out, fan_in))
        self.bias = nn.Parameter(torch.full((fan_out,), bias))
        self.scale = rate / math.sqrt(fan_in)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        # Scales the result instead of the parameters, in the same pass.
        return torch.addmm(self.bias, x, self.weight.T, beta=self.rate, alpha=self.scale)


class Convolution(nn.Module):
    """Convolution that keeps, doubles or halves the size; bias and activation unless ``linear``."""

    resample_filter: Tensor | None

    def __init__(
        self, fan_in: int, fan_out: int, kernel: int, architecture: Architecture, *,
        resample: Literal["up", "down"] | None = None, linear: bool = False, clamped: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(fan_out, fan_in, kernel, kernel))
        self.bias = None if linear else nn.Parameter(torch.zeros(fan_out))
        self.register_buffer("resample_filter", resample_filter(architecture, resample is not None))
        self.resample = resample
        self.linear = linear
        self.clamp = architecture.conv_clamp if clamped and not linear else None
        self.gain = 1.0 if linear else _GAIN
        self.scale = self.gain / math.sqrt(fan_in * kernel * kernel)

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight * self.scale).to(x.dtype)
        bias = None if self.bias is None else (self.bias * self.gain).to(x.dtype)
        if self.resample == "up":
            y = convolve_doubled(x, weight, self.resample_filter)
        elif self.resample == "down":
            y = convolve_halved(x, weight, self.resample_filter, bias)
        else:
            y = convolve(x, weight, bias)
        return y if self.linear else _rectify(y, self.clamp)


class Mapping(nn.Module):
    """Map z (N, z_dim) and class weights c (N, c_dim) to w (N, w_dim).

    z and the embedding of c are first divided by their root mean square. ``z_dim`` or ``c_dim`` of 0
    means no such input. ``beta`` is the decay of the running mean ``w_avg``; None keeps no mean.
    """

    w_avg: Tensor

    def __init__(
        self, *, z_dim: int, c_dim: int, w_dim: int, depth: int, rate: float, beta: float | None
    ) -> None:
        super().__init__()
        self.c_dim, self.depth, self.beta = c_dim, depth, beta
        if c_dim > 0:
            self.embed = FullyConnected(c_dim, w_dim)
        fan_in = z_dim + (w_dim if c_dim > 0 else 0)
        for i in range(depth):
            layer = FullyConnected(fan_in if i == 0 else w_dim, w_dim, rate=rate)
            self.add_module(f"fc{i}", layer)
        if beta is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z: Tensor | None, c: Tensor | None = None) -> Tensor:
        parts = [] if z is None else [_unit(z)]
        if self.c_dim > 0:
            if c is None or c.shape[1] != self.c_dim:
                raise InputError(
                    f"the network is conditioned on {self.c_dim} classes: expected one weight per "
                    f"class, found {0 if c is None else c.shape[1]}"
                )
            parts.append(_unit(self.embed(c)))
        w = torch.cat(parts, dim=1)
        for i in range(self.depth):
            w = activate(self.get_submodule(f"fc{i}")(w))
        return w

    @torch.no_grad()
    def track(self, w: Tensor) -> None:
        """Update the running mean of w, the centre of truncation."""
        if self.beta is not None:
            self.w_avg.lerp_(w.detach().mean(0), 1.0 - self.beta)


class StyledConvolution(nn.Module):
    """Modulated 3x3 convolution with noise and activation. ``up`` doubles the size."""

    noise_const: Tensor
    resample_filter: Tensor | None

    def __init__(
        self, fan_in: int, fan_out: int, resolution: int, architecture: Architecture, *, up: bool
    ) -> None:
        super().__init__()
        self.affine = FullyConnected(architecture.w_dim, fan_in, bias=1.0)
        self.weight = nn.Parameter(torch.zeros(fan_out, fan_in, 3, 3))
        self.bias = nn.Parameter(torch.zeros(fan_out))
        self.register_buffer("resample_filter", resample_filter(architecture, up))
        self.up = up
        self.clamp = architecture.conv_clamp
        # Fast resampling convolves before it doubles the size.
        self.size = resolution // 2 if up and self.resample_filter is None else resolution
        self.noisy = architecture.noise
        if self.noisy:
            self.noise_strength = nn.Parameter(torch.zeros(()))
            self.register_buffer("noise_const", torch.zeros(self.size, self.size))

    def forward(
        self, x: Tensor, w: Tensor, noise: NoiseMode, rng: torch.Generator | None
    ) -> Tensor:
        taps = self.resample_filter
        filtered = self.up and taps is not None
        convolution = partial(convolve_doubled, taps=taps) if filtered else convolve
        added: Tensor = self.bias
        if self.noisy and noise != "none":
            values = self.noise_const
            if noise == "random":
                shape = (len(w), 1, self.size, self.size)
                values = torch.randn(shape, generator=rng, device=x.device)
            added = values * self.noise_strength + self.bias[:, None, None]
        y = modulated(x, self.weight, self.affine(w), added, gain=_GAIN, convolution=convolution)
        y = _rectify(y, self.clamp)
        return double(y, None) if self.up and not filtered else y


class ToImage(nn.Module):
    """Convert features to an image by a 1x1 convolution, modulated but not demodulated."""

    def __init__(self, fan_in: int, architecture: Architecture) -> None:
        super().__init__()
        channels = architecture.channels
        self.affine = FullyConnected(architecture.w_dim, fan_in, bias=1.0)
        self.weight = nn.Parameter(torch.zeros(channels, fan_in, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.clamp = architecture.conv_clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        y = modulated(x, self.weight, self.affine(w), self.bias, demodulate=False)
        return y if self.clamp is None else y.clamp(-self.clamp, self.clamp)


def minibatch_spread(x: Tensor, group: int | None, channels: int) -> Tensor:
    """Return the standard deviation over groups of images (Karras et al. 2018, section 3).

    x is (N, C, H, W), the result (N, channels, H, W): the features are split into ``channels`` equal
    parts, and each value is the mean of a part's deviations over features and positions. Image i is in
    a group with i + N/G, i + 2 N/G, ...; the group size G is min(``group``, N), or N if ``group`` is
    None. If G does not divide N, their greatest common divisor is used.
    """
    n, features, height, width = x.shape
    size = math.gcd(min(group or n, n), n)
    y = x.reshape(size, n // size, channels, features // channels, height, width)
    y = ((y - y.mean(0)).square().mean(0) + 1e-8).sqrt().mean(dim=(2, 3, 4))
    return y.repeat(size, 1)[:, :, None, None].expand(-1, -1, height, width)


def resample_filter(architecture: Architecture, used: bool = True) -> Tensor | None:
    """Return a layer's filter. Published networks store the standard one in layers that use none."""
    if architecture.resampling == "fast":
        return None
    return make_filter(architecture.filter_taps if used else STANDARD_TAPS)


def _unit(x: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()
