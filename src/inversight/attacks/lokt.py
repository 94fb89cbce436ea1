"""LOKT (Nguyen et al., NeurIPS 2023): knowledge transfer by labels, then a white-box attack.

Threat model: label. The attacker sends images and reads the predicted class, and has a prior trained
on public images. Surrogates learn the target's labels of images of the prior. Then a white-box attack
runs on the surrogates, without further queries. Differences from the paper:

- The images are samples of the given prior. The paper trains its own generator with the surrogate as
  its classifier (T-ACGAN), which generates as many images of each class; here any prior must do. So
  images of rare classes are weighted more, and a class without any image is left out.
- The surrogates are this package's small classifiers of two families; the paper's are three DenseNets.
- The white-box attack is Plug & Play; the paper tries several. It can have any settings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveInt

from inversight.attacks.base import NoSampleError, Reconstructions
from inversight.attacks.base_attack import BaseAttack, Problem
from inversight.attacks.plug_and_play import PlugAndPlay
from inversight.attacks.surrogates import Ensemble, label_images, train_surrogates
from inversight.attacks.workload import SurrogateWork, Workload
from inversight.core.config import Fraction, settings
from inversight.core.errors import StageError
from inversight.core.seeding import generator
from inversight.models.target import Access
from inversight.models.training import Variation
from inversight.priors.base import Prior
from inversight.settings import Training


@settings
class Lokt(BaseAttack):
    """LOKT: surrogates that learn the target's labels are attacked in its place, with their gradients."""

    access: ClassVar[Access] = Access.LABEL

    images: PositiveInt = 50_000
    """Samples of the prior that the target labels; there are no other queries (paper: 500 for each class
    for the surrogates, besides those of its generator's training)."""
    truncation: Fraction = 1.0
    """Truncation of the samples towards the mean latent (paper: none, 1)."""
    surrogates: PositiveInt = 3
    """Surrogates; the attack is on the mean of their logits (paper: 3)."""
    training: Training = Field(
        default_factory=lambda: Training(epochs=30, batch_size=64, most_steps=20_000, rotation=5.0)
    )
    """How surrogates are trained; the second, fourth, ... are of the other family of networks."""
    balance: Annotated[float, Field(ge=1.0)] = 20.0
    """Largest weight of an image of a rare class, relative to one of the most frequent class."""
    white_box: PlugAndPlay = Field(default_factory=PlugAndPlay)
    """The attack on the surrogates."""

    @property
    def keep(self) -> int:
        """Reconstructions kept for each class."""
        return self.white_box.keep

    def workload(self, prior: Prior) -> Workload:
        seen = self.white_box.workload(prior)
        work = SurrogateWork(self.surrogates, self.images, self.training, seen)
        shared = {"images": self.images}
        return Workload(self.keep, self.batch_size, shared=shared, surrogates=work)

    def reconstruct(self, problem: Problem) -> Reconstructions:
        """Reconstruct the classes that a sample of the prior falls into.

        ``losses`` are those of the white-box attack on the surrogates.

        Raises:
            NoSampleError: no sample of the prior is in any of the classes.
            StageError: all samples are in one class.
        """
        labels, total = problem.labels, self.surrogates + 2
        latents = problem.sample(self.images, self.truncation, "pool")
        labelled, _ = label_images(problem, latents, batch_size=self.batch_size)
        problem.progress(1, total, f"{problem.meter.used:,} images labelled")
        counts = torch.bincount(labelled.labels, minlength=problem.target.num_classes)
        known = labels[counts[labels] > 0]
        nonempty = int((counts > 0).sum())
        if len(known) == 0 or nonempty < 2:
            raise (StageError if len(known) else NoSampleError)(
                f"Lokt: the target puts {self.images:,} samples of the prior in "
                f"{nonempty} class(es), among them {len(known)} of those to "
                "reconstruct; raise images, or take a prior nearer to the classes"
            )
        weights = (counts.max() / counts.clamp_min(1)).clamp(max=self.balance)[labelled.labels]
        variation = Variation(weights=weights / weights.mean())
        surrogates = []
        for surrogate in train_surrogates(
            problem, labelled, count=self.surrogates, training=self.training, variation=variation
        ):
            surrogates.append(surrogate)
            problem.progress(len(surrogates) + 1, total, "surrogates trained")
        ensemble = replace(surrogates[0], module=Ensemble(surrogates), mean=(0.0,), std=(1.0,))
        rng = generator(problem.seed, "white-box")
        found = self.white_box.run(ensemble, problem.prior, known, rng=rng)
        problem.progress(total, total, f"surrogates attacked, {problem.meter.used:,} queries")
        return found
