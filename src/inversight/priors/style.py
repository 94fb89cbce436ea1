"""A style-based generator and discriminator in plain PyTorch.

After Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (StyleGAN2):
mapping network, modulated convolutions with demodulation, noise, skip connections to the image,
residual discriminator with minibatch standard deviation, equalised learning rates. Convolutions are
modulated on their input and demodulated on their output, which is the same function as modulating
the weights of each image (their section 2.2) without grouped convolutions, which are slow on a CPU.
Images inside this module are in [-1, 1].
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NoiseMode = Literal["random", "const", "none"]
_GAIN = math.sqrt(2.0)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2) * _GAIN


class _Linear(nn.Module):
    """Fully connected layer with equalised learning rate (Karras et al. 2018, section 4.1)."""

    def __init__(self, fan_in: int, fan_out: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(fan_out, fan_in))
        self.bias = nn.Parameter(torch.full((fan_out,), bias / rate))
        self.init_std = 1.0 / rate
        self.scale = rate / math.sqrt(fan_in)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


class _Conv(nn.Module):
    """Convolution with equalised learning rate, 'same' padding."""

    def __init__(self, fan_in: int, fan_out: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(fan_out, fan_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(fan_out)) if bias else None
        self.init_std = 1.0
        self.scale = 1.0 / math.sqrt(fan_in * kernel * kernel)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.weight.shape[2] // 2)


class ModulatedConv(nn.Module):
    """Convolution whose input channels are scaled by styles (N, C_in) (StyleGAN2, eq. 1-3)."""

    def __init__(self, fan_in: int, fan_out: int, kernel: int, *, demodulate: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(fan_out, fan_in, kernel, kernel))
        self.init_std = 1.0
        self.scale = 1.0 / math.sqrt(fan_in * kernel * kernel)
        self.demodulate = demodulate

    def forward(self, x: Tensor, styles: Tensor) -> Tensor:
        weight = self.weight * self.scale
        y = F.conv2d(x * styles[:, :, None, None], weight, padding=weight.shape[2] // 2)
        if self.demodulate:
            power = weight.square().sum(dim=(2, 3))
            y = y * (styles.square() @ power.T + 1e-8).rsqrt()[:, :, None, None]
        return y


class _Mapping(nn.Module):
    """z -> w: z scaled to unit mean square, then a few layers at a hundredth of the learning rate."""

    w_mean: Tensor

    def __init__(self, z_dim: int, w_dim: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _Linear(z_dim if i == 0 else w_dim, w_dim, rate=0.01) for i in range(depth)
        )
        self.register_buffer("w_mean", torch.zeros(w_dim))

    def forward(self, z: Tensor) -> Tensor:
        w = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            w = _leaky(layer(w))
        return w

    @torch.no_grad()
    def track(self, w: Tensor) -> None:
        """Running mean of w, towards which truncation pulls."""
        self.w_mean.lerp_(w.detach().mean(0), 0.005)


class _StyledLayer(nn.Module):
    noise_const: Tensor

    def __init__(self, fan_in: int, fan_out: int, w_dim: int, size: int) -> None:
        super().__init__()
        self.affine = _Linear(w_dim, fan_in, bias=1.0)
        self.conv = ModulatedConv(fan_in, fan_out, 3)
        self.bias = nn.Parameter(torch.zeros(fan_out))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise_const", torch.zeros(size, size))
        self.size = size

    def forward(
        self, x: Tensor, w: Tensor, noise: NoiseMode, rng: torch.Generator | None
    ) -> Tensor:
        y = self.conv(x, self.affine(w))
        if noise == "random":
            drawn = torch.randn(len(w), 1, self.size, self.size, generator=rng).to(y.device)
            y = y + drawn * self.noise_strength
        elif noise == "const":
            y = y + self.noise_const * self.noise_strength
        return _leaky(y + self.bias[:, None, None])


class _ToImage(nn.Module):
    def __init__(self, fan_in: int, channels: int, w_dim: int) -> None:
        super().__init__()
        self.affine = _Linear(w_dim, fan_in, bias=1.0)
        self.conv = ModulatedConv(fan_in, channels, 1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        y: Tensor = self.conv(x, self.affine(w)) + self.bias[:, None, None]
        return y


def _double(x: Tensor) -> Tensor:
    # Bilinear doubling is the [1, 3, 3, 1] filter of StyleGAN2's upsampling.
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def channels_at(resolution: int, *, size: int, width: int) -> int:
    """Feature channels at a resolution: ``width`` at full size, doubled at each halving, at most 8x."""
    return width * min(8, size // resolution)


class Generator(nn.Module):
    """z (N, z_dim) -> w (N, w_dim) by ``mapping``; w -> images (N, C, S, S) by calling it."""

    def __init__(
        self, *, size: int, channels: int, width: int, z_dim: int, w_dim: int, mapping_depth: int
    ) -> None:
        super().__init__()
        self.mapping = _Mapping(z_dim, w_dim, mapping_depth)
        resolutions = [2**i for i in range(2, size.bit_length())]
        sizes = {r: channels_at(r, size=size, width=width) for r in resolutions}
        self.constant = nn.Parameter(torch.zeros(1, sizes[4], 4, 4))
        layers: list[nn.Module] = []
        images: list[nn.Module] = []
        for r in resolutions:
            if r > 4:
                layers.append(_StyledLayer(sizes[r // 2], sizes[r], w_dim, r // 2))
            layers.append(_StyledLayer(sizes[r], sizes[r], w_dim, r))
            images.append(_ToImage(sizes[r], channels, w_dim))
        self.layers = nn.ModuleList(layers)
        self.images = nn.ModuleList(images)

    def forward(
        self, w: Tensor, *, noise: NoiseMode = "const", rng: torch.Generator | None = None
    ) -> Tensor:
        x = self.constant.expand(len(w), -1, -1, -1)
        x = self.layers[0](x, w, noise, rng)
        image: Tensor = self.images[0](x, w)
        for i, to_image in enumerate(list(self.images)[1:]):
            # The first layer works before doubling: StyleGAN2's transposed convolution costs as much.
            x = _double(self.layers[2 * i + 1](x, w, noise, rng))
            x = self.layers[2 * i + 2](x, w, noise, rng)
            image = _double(image) + to_image(x, w)
        return image


class _DiscriminatorBlock(nn.Module):
    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.conv1 = _Conv(fan_in, fan_in, 3)
        self.conv2 = _Conv(fan_in, fan_out, 3)
        self.skip = _Conv(fan_in, fan_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # Shrinking before the second convolution is a quarter of the work of shrinking after it.
        y = _leaky(self.conv2(F.avg_pool2d(_leaky(self.conv1(x)), 2)))
        skip: Tensor = self.skip(F.avg_pool2d(x, 2))
        return (y + skip) * math.sqrt(0.5)


class Discriminator(nn.Module):
    """Images (N, C, S, S) in [-1, 1] -> logits (N,), above 0 for images it takes for real."""

    def __init__(self, *, size: int, channels: int, width: int, group: int = 4) -> None:
        super().__init__()
        self.group = group
        resolutions = [2**i for i in range(size.bit_length() - 1, 2, -1)]
        sizes = {r: channels_at(r, size=size, width=width) for r in [*resolutions, 4]}
        self.from_image = _Conv(channels, sizes[size], 1)
        self.blocks = nn.ModuleList(
            _DiscriminatorBlock(sizes[r], sizes[r // 2]) for r in resolutions
        )
        last = sizes[4]
        self.conv = _Conv(last + 1, last, 3)
        self.hidden = _Linear(last * 16, last)
        self.out = _Linear(last, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = _leaky(self.from_image(images))
        for block in self.blocks:
            x = block(x)
        x = torch.cat([x, self._spread(x)], dim=1)
        x = _leaky(self.conv(x))
        x = _leaky(self.hidden(x.flatten(1)))
        logits: Tensor = self.out(x).squeeze(1)
        return logits

    def _spread(self, x: Tensor) -> Tensor:
        """Minibatch standard deviation (Karras et al. 2018, section 3) as one more channel."""
        n = len(x)
        group = math.gcd(self.group, n)
        y = x.view(group, n // group, *x.shape[1:])
        y = ((y - y.mean(0)).square().mean(0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
        return y.repeat(group).view(n, 1, 1, 1).expand(-1, -1, *x.shape[2:])


@torch.no_grad()
def initialise(module: nn.Module, rng: torch.Generator) -> None:
    """Draw all weights from ``rng``: equalised layers N(0, 1), biases at their start values."""
    for child in module.modules():
        if isinstance(child, (_Linear, _Conv, ModulatedConv)):
            child.weight.copy_(torch.randn(child.weight.shape, generator=rng) * child.init_std)
        if isinstance(child, _StyledLayer):
            child.noise_const.copy_(torch.randn(child.noise_const.shape, generator=rng))
        if isinstance(child, Generator):
            child.constant.copy_(torch.randn(child.constant.shape, generator=rng))
