"""The published configurations of StyleGAN2-ADA: their networks, and how they are trained.

Facts of the authors' release for PyTorch (`train.py`, Karras et al. 2020, "Training Generative
Adversarial Networks with Limited Data", appendix); lengths are in images, a step is a batch.
"""

from __future__ import annotations

from inversight.core.config import from_mapping
from inversight.priors.architecture import Architecture
from inversight.settings.published import PublishedName, configuration


def published_architecture(
    name: PublishedName, *, size: int, channels: int = 3, c_dim: int = 0, gpus: int = 1
) -> Architecture:
    """The networks of a published configuration for images (``channels``, ``size``, ``size``).

    ``gpus`` matters to ``auto`` alone, whose batch grows with them.

    Raises:
        ConfigError: a size that is no power of two in 8..1024.
    """
    found = configuration(name, size, gpus)
    values = {
        "size": size,
        "channels": channels,
        "c_dim": c_dim,
        "mapping_depth": found.mapping_depth,
        "channel_base": found.channel_base,
        "half_resolutions": 4,
        "conv_clamp": 256.0,
        "discriminator": "orig" if found.simple else "resnet",
        "group": found.group,
    }
    return from_mapping(Architecture, values, where=f"{name}: ")
