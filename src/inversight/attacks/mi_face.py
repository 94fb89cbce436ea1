"""MI-Face's descent on pixels (Fredrikson et al., CCS 2015), regularised as in DeepInversion.

Threat model: white box. The attacker has the target's weights and nothing else: no prior, no public
images. Pixels alone find adversarial examples. The regularisers that need no images are total variation
and the means and variances that the target's batch norms keep of its training (Yin et al., CVPR 2020,
"Dreaming to Distill", DeepInversion; constants are those that its published code names as the paper's
for CIFAR-10). Differences:

- A batch contains every attacked class in turn (published: every class of the target, or random ones).
  Its statistics and its variation are joint, so the result of a class depends on which others are
  attacked. Without batch norms the first of these terms is 0.
- Pixels are kept within [0, 1] (published: not bounded). There is no competition with a student.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.base_attack import Problem
from inversight.attacks.gradient_search import Candidates, GradientSearch
from inversight.attacks.objectives import ObjectiveName
from inversight.attacks.workload import Workload
from inversight.core.config import settings
from inversight.core.seeding import generator
from inversight.models.activations import BatchNormInput, record_batch_norms
from inversight.models.target import Target
from inversight.priors.base import Prior
from inversight.priors.descent import descend


@settings
class MiFace(GradientSearch):
    """MI-Face: pixels from noise, without a prior. The latents that it returns are the images.

    Only the device of the prior's images is used. Images have the target's input size.
    """

    joint: ClassVar[bool] = True
    """Classes must be attacked together: a batch's statistics are those of all of them."""

    objective: ObjectiveName = "cross-entropy"
    """The loss (DeepInversion: cross-entropy; MI-Face: 1 - confidence)."""
    steps: PositiveInt = 2000
    """Steps of each candidate (DeepInversion: 2,000)."""
    learning_rate: PositiveFloat = 0.05
    """Adam's step size, in pixels as the target normalises them (DeepInversion: 0.05)."""
    variation_weight: NonNegativeFloat = 2.5e-5
    """Weight of the total variation (DeepInversion: 2.5e-5)."""
    statistics_weight: NonNegativeFloat = 10.0
    """Weight of the distance to the batch norms' statistics (DeepInversion: 10)."""
    jitter: NonNegativeInt = 2
    """Largest shift of the images in pixels, drawn anew in each step (DeepInversion: 2)."""
    group: PositiveInt = 256
    """Images whose statistics are computed together, of all classes in turn; all are in memory at once
    (DeepInversion: 256)."""

    def workload(self, prior: Prior) -> Workload:
        return replace(
            super().workload(prior), generates=False, at_once=self.group,
            loss=lambda target, x: self._loss(target, x, x, torch.zeros(len(x), dtype=torch.int64)),
        )  # fmt: skip

    def search(self, problem: Problem) -> Candidates:
        shape = (self.candidates, *problem.target.image_shape)
        noise = [torch.randn(shape, generator=rng) for rng in problem.rngs("start")]
        # The first candidate of every class, then the second of every class, and so on.
        starts = torch.stack(noise, dim=1).flatten(0, 1).split(self.group)
        groups = problem.labels.repeat(self.candidates).split(self.group)
        found = []
        for done, (start, labels) in enumerate(zip(starts, groups, strict=True), start=1):
            found.append(self._images(problem, start, labels))
            problem.progress(done, len(groups), "pixels optimised")
        by_candidate = torch.cat(found).unflatten(0, (self.candidates, -1))
        images = by_candidate.transpose(0, 1).flatten(0, 1)
        return Candidates(images, images)

    def _images(self, problem: Problem, noise: Tensor, labels: Tensor) -> Tensor:
        """Return images (N, C, S, S) in [0, 1] of the labels (N,), on the CPU, from normal noise."""
        target = problem.target
        noise, labels = noise.to(problem.device), labels.to(problem.device)
        mean = noise.new_tensor(target.mean).view(1, -1, 1, 1)
        std = noise.new_tensor(target.std).view(1, -1, 1, 1)
        low, high = (0.0 - mean) / std, (1.0 - mean) / std
        rng = generator(problem.seed, "jitter")

        def clip(variables: Sequence[Tensor]) -> list[Tensor]:
            return [one.clamp(low, high) for one in variables]

        def losses(variables: Sequence[Tensor]) -> list[Tensor]:
            shift = torch.randint(-self.jitter, self.jitter + 1, (2,), generator=rng).tolist()
            pixels = variables[0].roll(shift, dims=(2, 3))
            return [self._loss(target, pixels * std + mean, pixels, labels)]

        (pixels,) = descend(
            clip([noise]), losses, optimiser=self.optimiser, steps=self.steps, constrain=clip
        )
        return (pixels * std + mean).clamp(0.0, 1.0).cpu()

    def _loss(self, target: Target, images: Tensor, pixels: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of images (N, C, S, S), which are ``pixels`` before normalisation."""
        with record_batch_norms(target.module) as layers:
            loss = self.loss(target(images), labels.to(images.device)).mean()
        loss = loss + self.variation_weight * total_variation(pixels)
        return loss + self.statistics_weight * sum(map(statistics_gap, layers))


def total_variation(images: Tensor) -> Tensor:
    """Return the sum over four directions of the norm of all images' differences, in [0, inf).

    images: (N, C, H, W), taken together.
    """
    x = images
    pairs = (
        (x[..., :-1], x[..., 1:]),
        (x[..., :-1, :], x[..., 1:, :]),
        (x[..., 1:, :-1], x[..., :-1, 1:]),
        (x[..., :-1, :-1], x[..., 1:, 1:]),
    )
    return torch.stack([torch.linalg.vector_norm(a - b) for a, b in pairs]).sum()


def statistics_gap(layer: BatchNormInput) -> Tensor:
    """Return the distance in [0, inf) of a batch norm's input from its running statistics.

    The length of the difference of channel means plus that of channel variances.
    """
    own = layer.values.transpose(0, 1).flatten(1)
    gaps = own.mean(1) - layer.mean, own.var(1, correction=0) - layer.variance
    return torch.stack([torch.linalg.vector_norm(gap) for gap in gaps]).sum()
