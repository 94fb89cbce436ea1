"""The architecture of StyleGAN2-ADA networks: published configurations and small ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from inversight.core.config import Fraction, from_mapping, settings
from inversight.settings import PriorTraining
from inversight.settings.published import PublishedName, configuration

Resampling = Literal["fir", "fast"]
Connections = Literal["skip", "resnet", "orig"]

STANDARD_TAPS = (1.0, 3.0, 3.0, 1.0)


def _power_of_two(size: int) -> int:
    if size & (size - 1):
        raise ValueError("expected a power of two")
    return size


def _some_weight(taps: tuple[float, ...]) -> tuple[float, ...]:
    if sum(taps) == 0.0:
        raise ValueError("expected taps that do not sum to 0")
    return taps


@settings
class Architecture:
    """Generator and discriminator of StyleGAN2-ADA (Karras et al. 2020); defaults as published."""

    size: Annotated[int, Field(ge=8, le=1024), AfterValidator(_power_of_two)]
    """Height and width of the images, a power of two."""
    channels: PositiveInt = 3
    """Channels of the images."""
    z_dim: PositiveInt = 512
    """Dimensions of the normal latent z."""
    w_dim: PositiveInt = 512
    """Dimensions of the intermediate latent w."""
    c_dim: NonNegativeInt = 0
    """Classes that both networks are conditioned on; 0: none."""
    mapping_depth: PositiveInt = 8
    """Layers of the generator's mapping network."""
    mapping_rate: PositiveFloat = 0.01
    """Learning-rate multiplier of the generator's mapping network."""
    w_avg_beta: Fraction = 0.995
    """Memory of the running mean of w, for each batch."""
    channel_base: PositiveInt = 32768
    """Feature channels at resolution r: channel_base / r, at most channel_max."""
    channel_max: PositiveInt = 512
    """Most feature channels at any resolution."""
    half_resolutions: NonNegativeInt = 0
    """How many of the highest resolutions run in half precision on a GPU; never 4x4."""
    conv_clamp: PositiveFloat | None = None
    """Largest absolute value of a convolution's output; keeps half precision from overflowing."""
    generator: Connections = "skip"
    """Generator: skip (an image summed over resolutions), resnet (residual blocks) or orig."""
    discriminator: Connections = "resnet"
    """Discriminator: resnet (residual blocks), skip (sees the image at each resolution) or orig."""
    resampling: Resampling = "fir"
    """fir: as published. fast: convolves at the lower resolution, doubles bilinearly after the
    activation and halves by 2x2 means, for small images on a CPU."""
    filter_taps: Annotated[tuple[float, ...], Field(min_length=1), AfterValidator(_some_weight)] = (
        STANDARD_TAPS
    )
    """Low-pass filter of fir resampling, along one axis."""
    noise: bool = True
    """The generator has noise inputs."""
    group: PositiveInt | None = 4
    """Images over which the minibatch standard deviation is taken; none: the whole batch."""
    group_channels: NonNegativeInt = 1
    """Channels of the minibatch standard deviation; 0: left out."""
    cmap_dim: PositiveInt | None = None
    """Dimensions of the discriminator's class embedding; none: its channels at 4x4."""
    cmap_depth: NonNegativeInt = 8
    """Layers of the discriminator's mapping of classes."""
    cmap_rate: PositiveFloat = 0.01
    """Learning-rate multiplier of the discriminator's mapping of classes."""
    critic_classes: NonNegativeInt = 0
    """Classes that the discriminator predicts; the log-sum-exp of their logits judges an image (Salimans
    et al. 2016). 0: it has one logit. Not together with c_dim."""

    @model_validator(mode="after")
    def _one_use_of_classes(self) -> Architecture:
        if self.c_dim and self.critic_classes:
            raise ValueError("expected c_dim or critic_classes, found both")
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, S, S) of an image."""
        return (self.channels, self.size, self.size)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Resolutions 4, 8, ..., size, each with one block."""
        return tuple(2**i for i in range(2, self.size.bit_length()))

    @property
    def num_ws(self) -> int:
        """Number of latents of the generator: one per convolution, and one for the last image layer."""
        return 2 * len(self.resolutions)

    def width_at(self, resolution: int) -> int:
        """Return the feature channels at ``resolution``."""
        return max(1, min(self.channel_base // resolution, self.channel_max))

    def half_at(self, resolution: int) -> bool:
        """Return whether the block of ``resolution`` may run in half precision."""
        return resolution > 4 and resolution << self.half_resolutions > self.size


def published_architecture(
    name: PublishedName, *, size: int, channels: int = 3, c_dim: int = 0, gpus: int = 1
) -> Architecture:
    """Return the networks of a published configuration for images (``channels``, ``size``, ``size``).

    ``gpus`` matters for ``auto`` only, whose batch size depends on it.

    Raises:
        ConfigError: ``size`` is not a power of two in 8..1024.
    """
    found = configuration(name, size, gpus)
    values = {
        "size": size, "channels": channels, "c_dim": c_dim, "mapping_depth": found.mapping_depth,
        "channel_base": found.channel_base, "half_resolutions": 4, "conv_clamp": 256.0,
        "discriminator": "orig" if found.simple else "resnet", "group": found.group,
    }  # fmt: skip
    return from_mapping(Architecture, values, where=f"{name}: ")


def architecture_of(image_shape: Sequence[int], training: PriorTraining) -> Architecture:
    """Return the networks that the settings name for images (C, S, S).

    Raises:
        ConfigError: S is not a power of two in 8..1024.
    """
    channels, size, _ = image_shape
    if training.config != "small":
        return published_architecture(training.config, size=size, channels=channels)
    values = {
        "size": size, "channels": channels, "z_dim": training.z_dim, "w_dim": training.w_dim,
        "mapping_depth": training.mapping_depth, "channel_base": training.width * size,
        "channel_max": 8 * training.width, "resampling": "fast",
    }  # fmt: skip
    return from_mapping(Architecture, values, where="prior: ")
