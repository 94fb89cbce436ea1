"""Generator and discriminator of StyleGAN2-ADA in plain PyTorch.

After Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (StyleGAN2) and
"Training GANs with Limited Data" (ADA). One code for published networks on a GPU and small images on
a CPU; the :class:`Architecture` says which. Names and shapes of parameters and buffers are those of
the published networks, so that their state loads strictly. Images in this module are in [-1, 1].

Weights are in channels-last layout, a sixth faster on a CPU and what tensor cores want; sums come
out in another order, so that a network must have it always if it is to give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol, cast

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
    minibatch_spread,
    resample_filter,
)
from inversight.priors.resampling import double, halve

_HALVED_VARIANCE = math.sqrt(0.5)
"""Weight of a sum of two branches, so that it has the variance of one."""


class _Drawn(Protocol):
    def draw(self, rng: torch.Generator) -> None: ...


class SynthesisBlock(nn.Module):
    """Features and image of resolution r from those of r / 2."""

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

    def draw(self, rng: torch.Generator) -> None:
        """Draw the constant from which the first block starts."""
        self.const.copy_(torch.randn(self.const.shape, generator=rng))

    def forward(
        self,
        x: Tensor | None,
        image: Tensor | None,
        ws: Sequence[Tensor],
        noise: NoiseMode,
        rng: torch.Generator | None,
        half: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """x and image of the block below; ws: a w (N, w_dim) for each convolution and the image."""
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
    """w -> images, one block for each resolution."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.resolutions = architecture.resolutions
        for resolution in self.resolutions:
            self.add_module(f"b{resolution}", SynthesisBlock(resolution, architecture))

    @property
    def blocks(self) -> list[SynthesisBlock]:
        """From 4x4 up."""
        return [cast(SynthesisBlock, self.get_submodule(f"b{r}")) for r in self.resolutions]

    def forward(
        self, ws: Sequence[Tensor], noise: NoiseMode, rng: torch.Generator | None, half: bool
    ) -> Tensor:
        """ws: one w (N, w_dim) for each convolution, and one for the last image layer."""
        _, image = self.part(ws, noise, rng, half)
        return cast(Tensor, image)  # the last block has an image layer always

    def part(
        self,
        ws: Sequence[Tensor],
        noise: NoiseMode,
        rng: torch.Generator | None,
        half: bool,
        *,
        x: Tensor | None = None,
        image: Tensor | None = None,
        first: int = 0,
        last: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Features and image after the blocks ``first`` to ``last`` (exclusive; None: all).

        x and image are those of the block before ``first``; ws as for all blocks.
        """
        done = 0
        for number, block in enumerate(self.blocks):
            if first <= number and (last is None or number < last):
                # An image layer shares its w with the next block's first convolution.
                x, image = block(x, image, ws[done : done + 3], noise, rng, half)
            done += 1 if block.first else 2
        return cast(Tensor, x), image  # of one block at least


class Generator(nn.Module):
    """z (N, z_dim) -> w (N, w_dim) by ``mapping``; w -> images (N, C, S, S) by calling it."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.num_ws = architecture.num_ws
        self.mapping = Mapping(
            z_dim=architecture.z_dim,
            c_dim=architecture.c_dim,
            w_dim=architecture.w_dim,
            depth=architecture.mapping_depth,
            rate=architecture.mapping_rate,
            beta=architecture.w_avg_beta,
        )
        self.synthesis = Synthesis(architecture)
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        w: Tensor,
        *,
        noise: NoiseMode = "const",
        rng: torch.Generator | None = None,
        half: bool | None = None,
    ) -> Tensor:
        """Images of w (N, w_dim), or of one w for each layer, (N, num_ws, w_dim).

        ``rng`` draws random noise. ``half`` allows float16 where the architecture has it; by default
        on a GPU alone. Images are in the parameters' precision.
        """
        rows = self.rows(w)
        drawing = follow(rng, w.device) if rng is not None and noise == "random" else None
        images: Tensor = self.synthesis(rows, noise, drawing, w.is_cuda if half is None else half)
        return images

    def rows(self, w: Tensor) -> tuple[Tensor, ...]:
        """A w (N, w_dim) for each layer, of one for all, (N, w_dim), or of (N, num_ws, w_dim)."""
        return w.unbind(1) if w.dim() == 3 else (w,) * self.num_ws

    def mixed(self, w: Tensor, other: Tensor, *, rng: torch.Generator) -> Tensor:
        """(N, num_ws, w_dim): ``w`` up to a random layer, ``other`` from it on, both (N, w_dim).

        Style mixing (Karras et al. 2019, section 3.1); one layer in 1..num_ws - 1 for the batch.
        """
        crossover = int(torch.randint(1, self.num_ws, (), generator=rng))
        parts = [w[:, None].expand(-1, crossover, -1)]
        parts.append(other[:, None].expand(-1, self.num_ws - crossover, -1))
        return torch.cat(parts, dim=1)

    def truncated(self, w: Tensor, psi: float, cutoff: int | None = None) -> Tensor:
        """w (N, w_dim) pulled towards its mean: mean + psi (w - mean) (Karras et al. 2019, app. B).

        With a ``cutoff`` below num_ws only the first ``cutoff`` layers are pulled: (N, num_ws, w_dim).
        """
        mean = self.mapping.w_avg
        pulled = mean + psi * (w - mean)
        if cutoff is None or cutoff >= self.num_ws:
            return pulled
        parts = [pulled[:, None].expand(-1, cutoff, -1)]
        parts.append(w[:, None].expand(-1, self.num_ws - cutoff, -1))
        return torch.cat(parts, dim=1)

    def parts(self) -> Iterator[_Drawn]:
        """What is drawn at the start, in an order that must stay: priors belong to their seeds."""
        blocks = self.synthesis.blocks
        yield blocks[0]
        yield from (m for m in self.mapping.modules() if isinstance(m, FullyConnected))
        for kind in (StyledConvolution, ToImage, Convolution):
            yield from (m for block in blocks for m in block.children() if isinstance(m, kind))


class DiscriminatorBlock(nn.Module):
    """Features of resolution r / 2 from those of r, or from the image."""

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
        """Features of the block above (none for the first) and the image at this resolution."""
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
    """Features at 4x4 -> logits (N, 1) or (N, critic_classes), or (N, cmap_dim) to be projected."""

    def __init__(self, architecture: Architecture, out: int) -> None:
        super().__init__()
        width = architecture.width_at(4)
        self.group = architecture.group
        self.spread_channels = architecture.group_channels
        self.looks = architecture.discriminator == "skip"
        if self.looks:
            self.fromrgb = Convolution(architecture.channels, width, 1, architecture, clamped=False)
        self.conv = Convolution(width + self.spread_channels, width, 3, architecture)
        self.fc = FullyConnected(width * 16, width)
        self.out = FullyConnected(width, out)

    def forward(self, x: Tensor, image: Tensor | None, alone: bool = False) -> Tensor:
        x = x.to(self.conv.weight.dtype)
        if self.looks and image is not None:
            x = x + self.fromrgb(image.to(x.dtype))
        if self.spread_channels > 0:
            spread = minibatch_spread(x, 1 if alone else self.group, self.spread_channels)
            x = torch.cat([x, spread], dim=1)
        x = activate(self.fc(self.conv(x).flatten(1)))
        logits: Tensor = self.out(x)
        return logits


class Discriminator(nn.Module):
    """Images (N, C, S, S) in [-1, 1] -> logits (N,), above 0 for images it takes for real."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.resolutions = architecture.resolutions[:0:-1]
        for resolution in self.resolutions:
            self.add_module(f"b{resolution}", DiscriminatorBlock(resolution, architecture))
        conditional = architecture.c_dim > 0
        cmap_dim = architecture.cmap_dim or architecture.width_at(4)
        if conditional:
            self.mapping = Mapping(
                z_dim=0,
                c_dim=architecture.c_dim,
                w_dim=cmap_dim,
                depth=architecture.cmap_depth,
                rate=architecture.cmap_rate,
                beta=None,
            )
        own = architecture.critic_classes or 1
        self.b4 = DiscriminatorEpilogue(architecture, cmap_dim if conditional else own)
        self.to(memory_format=torch.channels_last)

    def forward(
        self, images: Tensor, c: Tensor | None = None, *, half: bool | None = None,
        alone: bool = False,
    ) -> Tensor:  # fmt: skip
        """Logits; c (N, c_dim) are class weights where the network is conditioned on classes.

        ``alone`` judges each image by itself, as a group without spread, so that its logit does not
        depend on the others'. ``half`` allows float16 where the architecture has it; by default on a GPU alone.
        """
        return self.judgement(self.outputs(images, half=half, alone=alone), c)

    def outputs(self, images: Tensor, *, half: bool | None = None, alone: bool = False) -> Tensor:
        """The last layer's outputs (N, ...), class logits if the architecture has critic_classes."""
        half = images.is_cuda if half is None else half
        x: Tensor | None = None
        image: Tensor | None = images
        for resolution in self.resolutions:
            x, image = self.get_submodule(f"b{resolution}")(x, image, half)
        outputs: Tensor = self.b4(x, image, alone)
        return outputs

    def judgement(self, outputs: Tensor, c: Tensor | None = None) -> Tensor:
        """Logits (N,) from the last layer's outputs."""
        if self.architecture.critic_classes > 0:
            # Real with probability Z / (Z + 1), Z the sum of exp(class logits) (Salimans et al. 2016).
            return outputs.logsumexp(1)
        if self.architecture.c_dim == 0:
            return outputs.squeeze(1)
        # Projection discriminator (Miyato and Koyama 2018), as ADA has it.
        projected: Tensor = self.mapping(None, c)
        return (outputs * projected).sum(1) / math.sqrt(projected.shape[1])

    def parts(self) -> Iterator[_Drawn]:
        """What is drawn at the start, in an order that must stay: priors belong to their seeds."""
        return (m for m in self.modules() if isinstance(m, (FullyConnected, Convolution)))


@torch.no_grad()
def initialise(network: Generator | Discriminator, rng: torch.Generator) -> None:
    """Draw a new network's weights and constant noise from ``rng``; biases are at their start values."""
    for part in network.parts():
        part.draw(rng)
