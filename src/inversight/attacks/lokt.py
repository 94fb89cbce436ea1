"""LOKT (Nguyen et al., NeurIPS 2023): knowledge transfer by labels, then white box on what learnt.

Threat model: label. The attacker sends images and reads the predicted class, and has a prior trained
on public images. Surrogates learn to answer as the target does from images of the prior that the
target labelled; then a white-box attack is run on the surrogates, and the target is asked no more.
What differs from the paper, and why:

- The images are samples of the prior at hand. The paper trains a generator of its own with the
  surrogate as its classifier (T-ACGAN), which is asked for a class and so yields as many images of
  each; here a prior of any kind must do. Images of rare classes weigh more instead, and a class that
  no image falls into is left out.
- The surrogates are this package's small classifiers of two families; the paper's are three DenseNets.
- The white-box attack is Plug & Play; the paper tries several. Any settings of it can be given.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from inversight.attacks.base import NoSampleError, Reconstructions
from inversight.attacks.plug_and_play import PlugAndPlay
from inversight.attacks.queries import admitted
from inversight.attacks.selection import truncated
from inversight.attacks.surrogates import Committee, answered, taught
from inversight.core.config import Fraction, settings
from inversight.core.errors import StageError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import draw_seed, generator
from inversight.models.target import Access, Target
from inversight.models.training import Variation
from inversight.priors.base import Prior
from inversight.settings import Training


@settings
class Lokt:
    """LOKT: surrogates taught by the target's labels, attacked in its place with their gradients."""

    images: PositiveInt = 50_000
    """Samples of the prior that the target labels, all the queries there are (paper: 500 a class for
    the surrogates, after those that its generator's training took)."""
    truncation: Fraction = 1.0
    """Truncation of the samples towards the mean latent (paper: none, 1)."""
    surrogates: PositiveInt = 3
    """Surrogates, attacked as one whose logits are the mean of theirs (paper: 3)."""
    training: Training = Field(
        default_factory=lambda: Training(epochs=30, batch_size=64, most_steps=20_000, rotation=5.0)
    )
    """How surrogates are trained; every second one is of the other family of networks."""
    balance: Annotated[float, Field(ge=1.0)] = 20.0
    """Weight that an image of a rare class has at most, beside one of the most frequent."""
    white_box: PlugAndPlay = Field(default_factory=PlugAndPlay)
    """The attack on the surrogates."""
    batch_size: PositiveInt = 200
    """Images that go through prior and target at once; changes memory, not results."""

    @property
    def access(self) -> Access:
        return Access.LABEL

    @property
    def keep(self) -> int:
        """Reconstructions kept for each class."""
        return self.white_box.keep

    @property
    def common(self) -> dict[str, int]:
        """Settings that are images sent for all classes together, and how often each is sent."""
        return {"images": 1}

    def planned_queries(self, prior: Prior, classes: int) -> int:
        """Images that the attack sends, however many classes there are."""
        return self.images

    def run(
        self,
        target: Target,
        prior: Prior,
        labels: Tensor,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
    ) -> Reconstructions:
        """Reconstruct each class in ``labels`` (distinct class indices) that a sample falls into.

        ``losses`` are the white-box attack's, on the surrogates.

        Raises:
            NoSampleError: no sample of the prior is in any of the classes.
            StageError: all are in one.
        """
        target, meter = admitted(self, target, prior)
        seed = draw_seed(rng)
        total = self.surrogates + 2
        latents = truncated(prior, self.truncation).sample(self.images, rng=generator(seed, "pool"))
        shown = answered(target, prior, latents, batch_size=self.batch_size).images
        progress(1, total, f"{meter.used:,} images labelled")
        counts = torch.bincount(shown.labels, minlength=len(target.classes))
        known = labels[counts[labels] > 0]
        if len(known) == 0 or int((counts > 0).sum()) < 2:
            raise (StageError if len(known) else NoSampleError)(
                f"Lokt: the target puts {self.images:,} samples of the prior in "
                f"{int((counts > 0).sum())} class(es), among them {len(known)} of those to "
                "reconstruct; raise images, or take a prior nearer to the classes"
            )
        weights = (counts.max() / counts.clamp_min(1)).clamp(max=self.balance)[shown.labels]
        surrogates = []
        for surrogate in taught(
            shown, count=self.surrogates, training=self.training, seed=seed,
            variation=Variation(weights=weights / weights.mean()),
            image_shape=prior.image_shape, device=latents.device,
        ):  # fmt: skip
            surrogates.append(surrogate)
            progress(len(surrogates) + 1, total, "surrogates trained")
        committee = replace(surrogates[0], module=Committee(surrogates), mean=(0.0,), std=(1.0,))
        made = self.white_box.run(committee, prior, known, rng=generator(seed, "white-box"))
        progress(total, total, f"surrogates attacked, {meter.used:,} queries")
        return replace(made, queries=meter.used)
