"""Latents of public images that the target is confident about, as starting points of attacks.

A prior's samples are close to few of the images that it was trained on. Projection into W (Karras et al.
2020, "Analyzing and Improving the Image Quality of StyleGAN", appendix D) finds the latent whose image is
closest to a given one, here called its pivot. The generator can be tuned to the pivots afterwards
(:mod:`inversight.priors.pivotal_tuning`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.core.progress import Progress, silent
from inversight.models.target import Target
from inversight.priors.descent import descend, ramp
from inversight.priors.feature_maps import StandardisedMaps
from inversight.priors.pseudo_labels import pseudo_labels
from inversight.priors.style_prior import StylePrior

SAMPLES = 2048
"""Samples of the prior; the projection of an image starts from the closest one."""
_PIXELS = 2**26
"""Approximate maximum of public pixels that their standard deviation is computed on."""
_THUMBNAIL = 16
"""Size at which samples are compared, or the prior's own if that is smaller."""
_RATE = 0.025
"""Adam's step size, relative to the standard deviation of the prior's latents (paper: 0.1, of the latents
of another network)."""
BETAS = (0.5, 0.99)
"""Adam's betas."""


def confident_images(
    scores: Tensor, per_class: int, *, surer_than: float = 0.0, samples: Tensor | None = None
) -> Tensor:
    """Return the rows (M,), ascending and unique, of the public images with the highest scores.

    Args:
        scores: (N, K), the target's log-probabilities of the public images.
        per_class: number of images per class; M <= K x ``per_class``.
        surer_than: use an image only if the target is at least as confident in it as in this fraction of
            the ``per_class`` top prior samples of its class, so M may be 0. 0 disables the filter.
        samples: (S, K), the target's log-probabilities of at least ``per_class`` samples.

    Raises:
        ConfigError: there are fewer public images than ``per_class``.
        ValueError: ``surer_than`` without enough samples.
    """
    rows, classes = pseudo_labels(scores, per_class, setting="pivots")
    if surer_than > 0.0:
        if samples is None or len(samples) < per_class:
            raise ValueError(f"expected at least {per_class} samples to compare images with")
        rivals = samples.topk(per_class, dim=0).values[:, classes]
        rows = rows[(rivals <= scores[rows, classes]).double().mean(0) >= surer_than]
    chosen: Tensor = rows.unique()
    return chosen


@torch.no_grad()
def sample_log_probabilities(
    target: Target, prior: StylePrior, n: int, *, batch_size: int = 32, rng: torch.Generator
) -> Tensor:
    """Return the target's log-probabilities (n, K) of untruncated samples; on the CPU."""
    latents = prior.truncated(1.0).sample(n, rng=rng)
    return torch.cat([target(prior(w)).log_softmax(1).cpu() for w in latents.split(batch_size)])


def project(
    prior: StylePrior, loss: ReconstructionLoss, images: Tensor, *, steps: int,
    samples: int = SAMPLES, batch_size: int = 32, rng: torch.Generator, progress: Progress = silent,
) -> Tensor:  # fmt: skip
    """Invert images: find latents that minimise the loss.

    Each image is inverted independently.

    Args:
        prior: the generator.
        loss: between an image and its reconstruction.
        images: uint8 (M, C, S, S).
        steps: number of descent steps.
        samples: number of samples, at least 2; the descent starts from the closest one.
        batch_size: images at once.
        rng: draws the samples.
        progress: called after each batch.

    Returns:
        Latents w (M, w_dim).
    """
    known = prior.truncated(1.0).sample(samples, rng=rng)
    start = _nearest(prior, known, images, batch_size=batch_size)
    adam = partial(torch.optim.Adam, lr=latent_rate(known), betas=BETAS)
    parts = list(zip(start.split(batch_size), images.split(batch_size), strict=True))
    found = []
    for number, (latents, some) in enumerate(parts, start=1):
        wanted = loss.wanted(some.to(latents.device))

        def losses(variables: Sequence[Tensor], wanted: list[Tensor] = wanted) -> list[Tensor]:
            return [loss(prior(variables[0]), wanted)]

        found += descend([latents], losses, steps=steps, optimiser=adam, rate=ramp)
        progress(number, len(parts), "images projected")
    return torch.cat(found)


def latent_rate(samples: Tensor) -> float:
    """Return the step size for a descent in latents that are distributed like ``samples`` (N, w_dim)."""
    return _RATE * float(samples.std(0).mean())


class ReconstructionLoss:
    """Mean of the squared differences in pixels and in the target's feature maps.

    Each is divided by its standard deviation over ``public`` images (N, C, S, S), uint8. Each image that it
    compares, and each of up to about 2,000 public ones once, goes through the target.
    """

    def __init__(self, target: Target, public: Tensor) -> None:
        self.maps = StandardisedMaps(target, public)
        most = max(1, min(SAMPLES, _PIXELS // public[0].numel()))
        pixels = public[:: max(1, len(public) // most)].float() / 255.0
        self.spread = float(pixels.std()) + 1e-3

    def features(self, images: Tensor) -> list[Tensor]:
        """Return what is compared of images (N, C, S, S) in [0, 1]: pixels and maps, each (N, ...)."""
        return [images / self.spread, *self.maps.of(images)]

    @torch.no_grad()
    def wanted(self, images: Tensor) -> list[Tensor]:
        """Return the features of the images to reproduce, uint8 (N, C, S, S), for :meth:`__call__`."""
        return self.features(images.float() / 255.0)

    def __call__(self, images: Tensor, wanted: list[Tensor]) -> Tensor:
        """Return the loss, summed over images, given the features ``wanted``."""
        pairs = zip(self.features(images), wanted, strict=True)
        parts = [(a - b).square().flatten(1).mean(1).sum() for a, b in pairs]
        return torch.stack(parts).mean()


@torch.no_grad()
def _nearest(prior: StylePrior, samples: Tensor, images: Tensor, *, batch_size: int) -> Tensor:
    """Return the sample (M, w_dim) with the closest thumbnail to each image, uint8 (M, C, S, S)."""
    small = torch.cat([_thumbnails(prior(w)).cpu() for w in samples.split(batch_size)])
    wanted = torch.cat([_thumbnails(some.float() / 255.0) for some in images.split(batch_size)])
    rows = torch.cdist(wanted, small).argmin(1)
    return samples[rows.to(samples.device)]


def _thumbnails(images: Tensor) -> Tensor:
    """Resize images (N, C, S, S) to at most 16x16, flattened: (N, D)."""
    side = min(_THUMBNAIL, images.shape[-1])
    return F.interpolate(images, (side, side), mode="area").flatten(1)
