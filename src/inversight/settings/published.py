"""The published configurations of StyleGAN2-ADA, and how they are trained.

Facts of the authors' release for PyTorch (`train.py`, Karras et al. 2020, "Training Generative
Adversarial Networks with Limited Data", appendix); lengths are in images, a step is a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

PublishedName = Literal["auto", "stylegan2", "paper256", "paper512", "paper1024", "cifar"]


@dataclass(frozen=True)
class Configuration:
    """Networks and training of one published configuration."""

    images: int
    """Images that the discriminator sees in the whole training."""
    batch_size: int
    group: int
    """Images over which a minibatch standard deviation is taken."""
    channel_base: int
    learning_rate: float
    r1: float
    ema_images: float
    ema_rampup: float | None
    mapping_depth: int
    simple: bool = False
    """No residual blocks in the discriminator, no style mixing, no path lengths."""


_MILLION = 1_000_000

_FIXED = {
    "stylegan2": Configuration(25 * _MILLION, 32, 4, 32768, 0.002, 10.0, 10e3, None, 8),
    "paper256": Configuration(25 * _MILLION, 64, 8, 16384, 0.0025, 1.0, 20e3, None, 8),
    "paper512": Configuration(25 * _MILLION, 64, 8, 32768, 0.0025, 0.5, 20e3, None, 8),
    "paper1024": Configuration(25 * _MILLION, 32, 4, 32768, 0.002, 2.0, 10e3, None, 8),
    "cifar": Configuration(100 * _MILLION, 64, 32, 32768, 0.0025, 0.01, 500e3, 0.05, 2, True),
}


def published_training(name: PublishedName, *, size: int, gpus: int = 1) -> dict[str, Any]:
    """Return a published configuration's training, as values of ``PriorTraining``'s fields."""
    found = configuration(name, size, gpus)
    same = ("batch_size", "learning_rate", "r1", "ema_images", "ema_rampup")
    return {
        **{field: getattr(found, field) for field in same},
        "config": name, "steps": found.images // found.batch_size,
        "mixing": 0.0 if found.simple else 0.9, "path_length": 0.0 if found.simple else 2.0,
        "r1_interval": 16, "path_length_interval": 4, "penalty_steps": True, "new_latents": True,
        "ada_target": 0.6, "ada_images": 500e3, "augment_filter": True, "noise": True,
    }  # fmt: skip


def configuration(name: PublishedName, size: int, gpus: int) -> Configuration:
    """Return a published configuration; ``auto`` depends on the images' ``size`` and on ``gpus``."""
    if name != "auto":
        return _FIXED[name]
    batch = max(gpus, min(64, gpus * min(32, 4096 // size)))
    return Configuration(
        images=25 * _MILLION, batch_size=batch, group=min(4, batch // gpus),
        channel_base=32768 if size >= 512 else 16384,
        learning_rate=0.002 if size >= 1024 else 0.0025, r1=0.0002 * size**2 / batch,
        ema_images=batch * 10e3 / 32, ema_rampup=0.05, mapping_depth=2,
    )  # fmt: skip
