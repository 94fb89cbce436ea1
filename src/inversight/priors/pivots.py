"""Latents of the public images that the target is surest of, from which attacks begin too.

A prior's samples come near to few of the images that it was trained on. Projection into W (Karras et
al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", appendix D) finds what comes nearest
to a given one; what is found is called its pivot, and the generator may be tuned to it afterwards
(:mod:`inversight.priors.pivotal_tuning`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.core.progress import Progress, silent
from inversight.models.target import Target
from inversight.priors import StylePrior
from inversight.priors.descent import descend, ramp
from inversight.priors.feature_maps import StandardisedMaps
from inversight.priors.pseudo_labels import pseudo_labels

SAMPLES = 2048
"""Samples of the prior of which the nearest to an image is where its projection begins."""
_PIXELS = 2**26
"""About how many pixels of public images their spread is measured on at most."""
_THUMB = 16
"""Size at which they are compared, or the prior's own if that is smaller."""
_RATE = 0.025
"""Adam's step size, relative to the spread of the prior's latents (paper: 0.1, of latents of another)."""
BETAS = (0.5, 0.99)
"""Adam's betas."""


def confident_images(
    scores: Tensor,
    per_class: int,
    *,
    surer_than: float = 0.0,
    samples: Tensor | None = None,
) -> Tensor:
    """Rows (M,) of the public images of each class that the target is surest of, ascending, each once.

    scores (N, K): its log-probabilities of them; M <= K x ``per_class``. Of these only such as the target is
    at least as sure of as of a share ``surer_than`` of the ``per_class`` of the prior's ``samples`` that
    it is surest of for that class: samples (S, K) are its log-probabilities of at least ``per_class``.
    So M may be 0.

    Raises:
        ConfigError: there are fewer public images than ``per_class``.
        ValueError: ``surer_than`` without enough samples.
    """
    rows, classes = pseudo_labels(scores, per_class, setting="pivots")
    if surer_than > 0.0:
        if samples is None or len(samples) < per_class:
            raise ValueError(f"expected {per_class} samples or more to be surer than")
        rivals = samples.topk(per_class, dim=0).values[:, classes]
        rows = rows[(rivals <= scores[rows, classes]).double().mean(0) >= surer_than]
    chosen: Tensor = rows.unique()
    return chosen


@torch.no_grad()
def sample_log_probabilities(
    target: Target, prior: StylePrior, n: int, *, batch_size: int = 32, rng: torch.Generator
) -> Tensor:
    """The target's log-probabilities (n, K) of samples of the whole prior; on the CPU."""
    latents = prior.truncated(1.0).sample(n, rng=rng)
    return torch.cat([target(prior(w)).log_softmax(1).cpu() for w in latents.split(batch_size)])


def project(
    prior: StylePrior,
    target: Target,
    images: Tensor,
    public: Tensor,
    *,
    steps: int,
    samples: int = SAMPLES,
    batch_size: int = 32,
    rng: torch.Generator,
    progress: Progress = silent,
) -> Tensor:
    """Latents w (M, w_dim) whose pictures come near to images, uint8 (M, C, S, S).

    Near in pixels and in the target's :class:`StandardisedMaps`, each weighing the same, in standard
    deviations of the ``public`` images'. An image's latent hangs on no other's. The search for it begins
    at the nearest of ``samples``, of at least 2.
    """
    nearness = ReconstructionLoss(target, public)
    known = prior.truncated(1.0).sample(samples, rng=rng)
    start = _nearest(prior, known, images, batch_size=batch_size)
    rate = latent_rate(known)
    parts = list(zip(start.split(batch_size), images.split(batch_size), strict=True))
    found = []
    for number, (latents, some) in enumerate(parts, start=1):
        with torch.no_grad():
            wanted = nearness.seen(some.to(latents.device).float() / 255.0)

        def losses(variables: Sequence[Tensor], wanted: list[Tensor] = wanted) -> list[Tensor]:
            return [nearness.between(prior(variables[0]), wanted)]

        def adam(variables: list[Tensor]) -> torch.optim.Optimizer:
            return torch.optim.Adam(variables, lr=rate, betas=BETAS)

        found += descend([latents], losses, steps=steps, optimiser=adam, rate=ramp)
        progress(number, len(parts), "public images projected")
    return torch.cat(found)


def latent_rate(samples: Tensor) -> float:
    """Step size of a search among latents that are spread like these, (N, w_dim)."""
    return _RATE * float(samples.std(0).mean())


class ReconstructionLoss:
    """How near images are: squared differences in pixels and in the target's maps.

    Both are taken in standard deviations of the public images' (N, C, S, S), uint8.
    """

    def __init__(self, target: Target, public: Tensor) -> None:
        self.maps = StandardisedMaps(target, public)
        most = max(1, min(SAMPLES, _PIXELS // public[0].numel()))
        pixels = public[:: max(1, len(public) // most)].float() / 255.0
        self.spread = float(pixels.std()) + 1e-3

    def seen(self, images: Tensor) -> list[Tensor]:
        """What is compared of images (N, C, S, S) in [0, 1]: each (N, ...)."""
        return [images / self.spread, *self.maps.of(images)]

    def between(self, images: Tensor, wanted: list[Tensor]) -> Tensor:
        """Sum over images of their mean squared differences from what is ``wanted``."""
        pairs = zip(self.seen(images), wanted, strict=True)
        parts = [(a - b).square().flatten(1).mean(1).sum() for a, b in pairs]
        return torch.stack(parts).mean()


@torch.no_grad()
def _nearest(prior: StylePrior, samples: Tensor, images: Tensor, *, batch_size: int) -> Tensor:
    """The sample (M, w_dim) whose picture is nearest to each image, uint8 (M, C, S, S), made small."""
    small = torch.cat([_thumbs(prior(w)).cpu() for w in samples.split(batch_size)])
    wanted = torch.cat([_thumbs(some.float() / 255.0) for some in images.split(batch_size)])
    rows = torch.cdist(wanted, small).argmin(1)
    return samples[rows.to(samples.device)]


def _thumbs(images: Tensor) -> Tensor:
    """Images (N, C, S, S) at most 16x16, flattened: (N, D)."""
    side = min(_THUMB, images.shape[-1])
    return F.interpolate(images, (side, side), mode="area").flatten(1)
