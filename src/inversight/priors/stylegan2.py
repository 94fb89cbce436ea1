"""Generator and discriminator of StyleGAN2-ADA in plain PyTorch.

After Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (StyleGAN2) and
"Training GANs with Limited Data" (ADA). The same code serves published networks on a GPU and small
images on a CPU, depending on the :class:`Architecture`. Parameters and buffers have the names and
shapes of the published networks, so published states load strictly. Images here are in [-1, 1].

Weights are in channels-last layout, which is a sixth faster on a CPU and suits tensor cores. The layout
changes the order of sums, so all networks use it: equal weights then give bitwise equal results.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from inversight.core.seeding import follow
from inversight.priors.architecture import Architecture
from inversight.priors.layers import (
    Convolution,
    FullyConnected,
    Mapping,
    NoiseMode,
    StyledConvolution,
    ToImage,
    activate,
    draw,
    minibatch_spread,
    resample_filter,
)
from inversight.priors.resampling import double, halve

_HALVED_VARIANCE = math.sqrt(0.5)
"""Factor of the sum of two branches, which keeps the variance of one."""


class SynthesisBlock(nn.Module):
    """Compute features and image of resolution r from those of r / 2."""

    resample_filter: Tensor | None

    def __init__(self, resolution: int, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.width_at(resolution)
        self.register_buffer("resample_filter", resample_filter(architecture))
        self.first = resolution == 4
        self.reduced = architecture.half_at(resolution)
        self.shows = architecture.generator == "skip" or resolution == architecture.size
        self.residual = architecture.generator == "resnet" and not self.first
        if self.first:
            self.const = nn.Parameter(torch.zeros(width, 4, 4))
        else:
            below = architecture.width_at(resolution // 2)
            self.conv0 = StyledConvolution(below, width, resolution, architecture, up=True)
        self.conv1 = StyledConvolution(width, width, resolution, architecture, up=False)
        if self.shows:
            self.torgb = ToImage(width, architecture)
        if self.residual:
            self.skip = Convolution(below, width, 1, architecture, resample="up", linear=True)

    def forward(
        self, x: Tensor | None, image: Tensor | None, ws: Sequence[Tensor], noise: NoiseMode,
        rng: torch.Generator | None, half: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Return features and image, given those of the block below and one w (N, w_dim) per layer."""
        rows = iter(ws)
        before = self.const.expand(len(ws[0]), -1, -1, -1) if x is None else x
        before = before.to(torch.float16 if half and self.reduced else self.conv1.weight.dtype)
        y = before if self.first else self.conv0(before, next(rows), noise, rng)
        y = self.conv1(y, next(rows), noise, rng)
        if self.residual:
            y = (y + self.skip(before)) * _HALVED_VARIANCE
        if image is not None:
            image = double(image, self.resample_filter)
        if self.shows:
            own = self.torgb(y, next(rows)).to(self.torgb.weight.dtype)
            image = own if image is None else image + own
        return y, image


class Synthesis(nn.Module):
    """Map w to images, with one block for each resolution."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.resolutions = architecture.resolutions
        for resolution in self.resolutions:
            self.add_module(f"b{resolution}", SynthesisBlock(resolution, architecture))

    @property
    def blocks(self) -> list[SynthesisBlock]:
        """The blocks from 4x4 up."""
        return [cast(SynthesisBlock, self.get_submodule(f"b{r}")) for r in self.resolutions]

    def forward(
        self, ws: Sequence[Tensor], noise: NoiseMode, rng: torch.Generator | None, half: bool, *,
        x: Tensor | None = None, image: Tensor | None = None, first: int = 0,
        last: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Return features and image after the blocks ``first`` to ``last`` (exclusive; None: all).

        ws: one w (N, w_dim) for each convolution of all blocks, and one for the last image layer. x and
        image are those of the block before ``first``.
        """
        for number, block in list(enumerate(self.blocks))[first:last]:
            done = max(0, 2 * number - 1)  # an image layer shares its w with the next convolution
            x, image = block(x, image, ws[done : done + 3], noise, rng, half)
        return cast(Tensor, x), image  # at least one block ran


class Generator(nn.Module):
    """Map z (N, z_dim) to w (N, w_dim) by ``mapping``, and w to images (N, C, S, S) when called."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = a = architecture
        self.num_ws = a.num_ws
        self.mapping = Mapping(
            z_dim=a.z_dim, c_dim=a.c_dim, w_dim=a.w_dim,
            depth=a.mapping_depth, rate=a.mapping_rate, beta=a.w_avg_beta,
        )  # fmt: skip
        self.synthesis = Synthesis(a)
        self.to(memory_format=torch.channels_last)

    def forward(
        self, w: Tensor, *, noise: NoiseMode = "const", rng: torch.Generator | None = None,
        half: bool | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the images of w (N, w_dim), or of one w per layer, (N, num_ws, w_dim).

        ``rng`` draws random noise. ``half`` allows float16 where the architecture has it; default: on a
        GPU only. Images have the parameters' precision.
        """
        half = w.is_cuda if half is None else half
        drawing = follow(rng, w.device) if rng is not None and noise == "random" else None
        _, images = self.synthesis(self.rows(w), noise, drawing, half)
        return cast(Tensor, images)  # the last block always has an image layer

    def rows(self, w: Tensor) -> tuple[Tensor, ...]:
        """Return one w (N, w_dim) per layer, given one for all layers or w (N, num_ws, w_dim)."""
        return w.unbind(1) if w.dim() == 3 else (w,) * self.num_ws

    def mixed(self, w: Tensor, other: Tensor, *, rng: torch.Generator) -> Tensor:
        """Return ``w`` (N, w_dim) for layers below a random one and ``other`` from it on.

        Style mixing (Karras et al. 2019, section 3.1). The result is (N, num_ws, w_dim); the layer, in
        1..num_ws - 1, is the same for the whole batch.
        """
        return self._joined(w, other, int(torch.randint(1, self.num_ws, (), generator=rng)))

    def truncated(self, w: Tensor, psi: float, cutoff: int | None = None) -> Tensor:
        """Return mean + psi (w - mean) of w (N, w_dim) (Karras et al. 2019, appendix B).

        With a ``cutoff`` below num_ws only the first ``cutoff`` layers are truncated, and the result is
        (N, num_ws, w_dim).
        """
        mean = self.mapping.w_avg
        pulled = mean + psi * (w - mean)
        if cutoff is None or cutoff >= self.num_ws:
            return pulled
        return self._joined(pulled, w, cutoff)

    def _joined(self, first: Tensor, rest: Tensor, layers: int) -> Tensor:
        """Return ``first`` (N, w_dim) for the first ``layers`` layers and ``rest`` for the others."""
        parts = [first[:, None].expand(-1, layers, -1)]
        parts.append(rest[:, None].expand(-1, self.num_ws - layers, -1))
        return torch.cat(parts, dim=1)

    def drawn_layers(self) -> Iterator[nn.Module]:
        """Yield the layers with initial draws. The order must not change: seeds depend on it."""
        blocks = self.synthesis.blocks
        yield blocks[0]
        yield from (m for m in self.mapping.modules() if isinstance(m, FullyConnected))
        for kind in (StyledConvolution, ToImage, Convolution):
            yield from (m for block in blocks for m in block.children() if isinstance(m, kind))


class DiscriminatorBlock(nn.Module):
    """Compute features of resolution r / 2 from those of r, or from the image."""

    resample_filter: Tensor | None

    def __init__(self, resolution: int, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.width_at(resolution)
        out = architecture.width_at(resolution // 2)
        self.register_buffer("resample_filter", resample_filter(architecture))
        self.reduced = architecture.half_at(resolution)
        self.keeps_image = architecture.discriminator == "skip"
        self.residual = architecture.discriminator == "resnet"
        self.looks = self.keeps_image or resolution == architecture.size
        if self.looks:
            self.fromrgb = Convolution(architecture.channels, width, 1, architecture)
        self.conv0 = Convolution(width, width, 3, architecture)
        self.conv1 = Convolution(width, out, 3, architecture, resample="down")
        if self.residual:
            self.skip = Convolution(width, out, 1, architecture, resample="down", linear=True)

    def forward(
        self, x: Tensor | None, image: Tensor | None, half: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return features and image for the next block, given those at this resolution.

        x is None for the first block. The image is None once no later block reads it.
        """
        dtype = torch.float16 if half and self.reduced else self.conv0.weight.dtype
        before = None if x is None else x.to(dtype)
        if self.looks and image is not None:
            image = image.to(dtype)
            seen = self.fromrgb(image)
            before = seen if before is None else before + seen
            image = halve(image, self.resample_filter) if self.keeps_image else None
        y: Tensor = self.conv1(self.conv0(before))
        if self.residual:
            y = (y + self.skip(before)) * _HALVED_VARIANCE
        return y, image


class DiscriminatorEpilogue(nn.Module):
    """Map features at 4x4 to logits (N, 1) or (N, critic_classes), or to (N, cmap_dim) for projection."""

    def __init__(self, architecture: Architecture, out: int) -> None:
        super().__init__()
        width = architecture.width_at(4)
        self.group, self.spread_channels = architecture.group, architecture.group_channels
        self.looks = architecture.discriminator == "skip"
        if self.looks:
            self.fromrgb = Convolution(architecture.channels, width, 1, architecture, clamped=False)
        self.conv = Convolution(width + self.spread_channels, width, 3, architecture)
        self.fc = FullyConnected(width * 16, width)
        self.out = FullyConnected(width, out)

    def forward(
        self, x: Tensor, image: Tensor | None, alone: bool = False, sets: int = 1
    ) -> Tensor:
        x = x.to(self.conv.weight.dtype)
        if self.looks and image is not None:
            x = x + self.fromrgb(image.to(x.dtype))
        if self.spread_channels > 0:
            group = 1 if alone else self.group
            spread = [minibatch_spread(y, group, self.spread_channels) for y in x.chunk(sets)]
            x = torch.cat([x, torch.cat(spread)], dim=1)
        x = activate(self.fc(self.conv(x).flatten(1)))
        logits: Tensor = self.out(x)
        return logits


class Discriminator(nn.Module):
    """Map images (N, C, S, S) in [-1, 1] to logits (N,), above 0 for images judged real."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = a = architecture
        self.resolutions = a.resolutions[:0:-1]
        for resolution in self.resolutions:
            self.add_module(f"b{resolution}", DiscriminatorBlock(resolution, a))
        out = a.critic_classes or 1
        if a.c_dim > 0:
            out = a.cmap_dim or a.width_at(4)
            self.mapping = Mapping(
                z_dim=0, c_dim=a.c_dim, w_dim=out, depth=a.cmap_depth, rate=a.cmap_rate, beta=None
            )
        self.b4 = DiscriminatorEpilogue(a, out)
        self.to(memory_format=torch.channels_last)

    def forward(
        self, images: Tensor, c: Tensor | None = None, *, half: bool | None = None,
        alone: bool = False,
    ) -> Tensor:  # fmt: skip
        """Return the logits. c (N, c_dim) are class weights for a network conditioned on classes.

        ``alone`` judges each image independently, as a group without spread. ``half`` allows float16
        where the architecture has it; default: on a GPU only.
        """
        return self.judgement(self.outputs(images, half=half, alone=alone), c)

    def outputs(
        self, images: Tensor, *, half: bool | None = None, alone: bool = False, sets: int = 1
    ) -> Tensor:
        """Return the last layer's outputs (N, ...): class logits if there are critic_classes.

        ``images`` are ``sets`` sets of equal size, one after another; groups for spread lie within them.
        """
        half = images.is_cuda if half is None else half
        x: Tensor | None = None
        image: Tensor | None = images
        for resolution in self.resolutions:
            x, image = self.get_submodule(f"b{resolution}")(x, image, half)
        outputs: Tensor = self.b4(x, image, alone, sets)
        return outputs

    def judgement(self, outputs: Tensor, c: Tensor | None = None) -> Tensor:
        """Return the logits (N,) from the last layer's outputs."""
        if self.architecture.critic_classes > 0:
            # P(real) = Z / (Z + 1) with Z the sum of exp(class logits) (Salimans et al. 2016).
            return outputs.logsumexp(1)
        if self.architecture.c_dim == 0:
            return outputs.squeeze(1)
        # Projection discriminator (Miyato and Koyama 2018), as in ADA.
        projected: Tensor = self.mapping(None, c)
        return (outputs * projected).sum(1) / math.sqrt(projected.shape[1])

    def drawn_layers(self) -> Iterator[nn.Module]:
        """Yield the layers with initial draws. The order must not change: seeds depend on it."""
        return (m for m in self.modules() if isinstance(m, (FullyConnected, Convolution)))


def initialise(network: Generator | Discriminator, rng: torch.Generator) -> None:
    """Draw a new network's weights and constant noise from ``rng``; biases keep their start values."""
    for layer in network.drawn_layers():
        draw(layer, rng)
