"""How the style-based prior is built and trained: every setting of it."""

from __future__ import annotations

from inversight.core.config import from_mapping
from inversight.priors.architecture import Architecture
from inversight.priors.published import published_architecture
from inversight.priors.stylegan2 import Discriminator, Generator
from inversight.settings import PriorTraining


def architecture_of(image_shape: tuple[int, int, int], training: PriorTraining) -> Architecture:
    """The architecture that the settings name for images (C, S, S).

    Raises:
        ConfigError: S is no power of two in 8..1024.
    """
    channels, size, _ = image_shape
    if training.config != "small":
        return published_architecture(training.config, size=size, channels=channels)
    values = {
        "size": size,
        "channels": channels,
        "z_dim": training.z_dim,
        "w_dim": training.w_dim,
        "mapping_depth": training.mapping_depth,
        "channel_base": training.width * size,
        "channel_max": 8 * training.width,
        "resampling": "fast",
    }
    return from_mapping(Architecture, values, where="prior: ")


def build_networks(
    image_shape: tuple[int, int, int], training: PriorTraining
) -> tuple[Generator, Discriminator]:
    """Untrained networks of the settings' architecture for images (C, S, S).

    Raises:
        ConfigError: S is no power of two in 8..1024.
    """
    architecture = architecture_of(image_shape, training)
    return Generator(architecture), Discriminator(architecture)
