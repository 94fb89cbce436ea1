"""How the style-based prior is built and trained: every setting of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from inversight.core.config import Fraction, from_mapping, settings
from inversight.priors.architecture import Architecture
from inversight.priors.published import (
    PublishedName,
    published_architecture,
    published_training,
)
from inversight.priors.stylegan2 import Discriminator, Generator


@settings
class PriorTraining:
    """The style-based prior and how it is trained on the public images."""

    steps: PositiveInt = 2000
    """Steps of the adversarial game (one step of discriminator and generator each)."""
    batch_size: PositiveInt = 32
    """Images a step, on all processes together."""
    images_at_once: PositiveInt | None = None
    """Images that a process works on at once; the gradients of these shares of a batch add up. None:
    all that fall to a process. Lower it if memory runs out."""
    config: Literal["small", "auto", "stylegan2", "paper256", "paper512", "paper1024", "cifar"] = (
        "small"
    )
    """Networks: small, for small images on a CPU, or those of a published configuration, which sets
    width, z_dim, w_dim and mapping_depth itself, and what of the training is not given."""
    width: PositiveInt = 16
    """Feature channels of small at full size; doubled at each halving, at most eightfold."""
    z_dim: PositiveInt = 64
    """Dimensions of small's normal latent z (published: 512)."""
    w_dim: PositiveInt = 64
    """Dimensions of small's intermediate latent w, in which attacks search (published: 512)."""
    mapping_depth: PositiveInt = 2
    """Layers of small's mapping network."""
    learning_rate: PositiveFloat = 2e-3
    """Adam's step size (paper: 2e-3)."""
    r1: NonNegativeFloat = 2.0
    """Weight gamma of the R1 penalty; too low and small images collapse (paper: 10)."""
    r1_interval: PositiveInt = 16
    """Steps from one R1 penalty to the next (paper: 16)."""
    path_length: NonNegativeFloat = 0.0
    """Weight of the path-length penalty; 0: none (paper: 2)."""
    path_length_interval: PositiveInt = 4
    """Steps from one path-length penalty to the next (paper: 4)."""
    penalty_steps: bool = False
    """Each penalty takes a step of its own, as published, instead of joining the step that it falls
    on, which is cheaper."""
    mixing: Fraction = 0.0
    """Probability that a batch's later layers get another latent than its earlier ones (paper: 0.9)."""
    ema_images: PositiveFloat = 5000.0
    """Half-life of the generator's moving average, in images (paper: 10,000)."""
    ema_rampup: PositiveFloat | None = 0.05
    """Longest half-life as a share of the images seen so far, so that early averages soon forget the
    untrained generator; None: no such bound (published: 0.05 or None, None on a trained prior)."""
    ada_target: Fraction = 0.6
    """Mean sign of the discriminator on real images that augmentation aims at (paper: 0.6)."""
    ada_images: PositiveFloat = 50000.0
    """Images in which the augmentation probability may go from 0 to 1."""
    augment_filter: bool = False
    """Augment through a wavelet's low-pass filter, as published: slower, but it does not blur, R1 sees
    images before their augmentation, and grey images are inverted as colour images are."""
    noise: bool = False
    """Add learnt amounts of noise to the features; attacks cannot search it, so off by default."""
    mirror: bool = True
    """Augment with mirroring and quarter turns; switch off for images like digits."""
    checkpoint_seconds: PositiveFloat = 30.0
    """Time from one checkpoint to the next."""
    watch_images: PositiveInt | None = None
    """Images from one look at samples (grid, Frechet distance) to the next; None: a tenth of all."""


def training_of(values: Mapping[str, Any], *, size: int, gpus: int = 1) -> PriorTraining:
    """Settings from what was given, on top of what the configuration it names was published with.

    ``size`` of the images and ``gpus`` matter to ``auto`` alone.

    Raises:
        ConfigError: an unknown name or a value out of range.
    """
    config = values.get("config", "small")
    published = config != "small" and config in get_args(PublishedName)
    base = published_training(config, size=size, gpus=gpus) if published else {}
    return from_mapping(PriorTraining, {**base, **values}, where="prior: ")


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
