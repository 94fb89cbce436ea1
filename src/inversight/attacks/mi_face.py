"""MI-Face's descent on pixels (Fredrikson et al., CCS 2015), regularised as DeepInversion is.

Threat model: white box. The attacker has the target's weights and nothing else: no prior, no public
images. Pixels alone find adversarial examples; what is known of images without any are total variation
and the means and variances that the target's batch norms keep of its training (Yin et al., CVPR 2020,
"Dreaming to Distill", DeepInversion; constants as its published code names the
paper's for CIFAR-10). What differs, and why:

- A batch has every class attacked in turn (published: every class of the target, or random ones). Its
  statistics and its variation are joint, so that what a class gives depends on which others are attacked.
  Without batch norms the first of these terms is 0.
- Pixels are kept within [0, 1] (published: not bounded). There is no competition with a student.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.base import Reconstructions, check_fits
from inversight.attacks.objectives import OBJECTIVES, ObjectiveName
from inversight.attacks.search import Pixels
from inversight.attacks.selection import FinalSelection
from inversight.core.config import settings
from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import draw_seed, generator
from inversight.models.activations import BatchNormInput, record_batch_norms
from inversight.models.target import Access, Target
from inversight.priors.base import Prior
from inversight.priors.descent import descend


@settings
class MiFace(FinalSelection):
    """MI-Face: pixels from noise, without a prior. The latents it gives back are the images."""

    objective: ObjectiveName = "cross-entropy"
    """What is descended (DeepInversion: cross-entropy; MI-Face: 1 - confidence)."""
    steps: PositiveInt = 2000
    """Steps of each candidate (DeepInversion: 2,000)."""
    learning_rate: PositiveFloat = 0.05
    """Adam's step size, in pixels as the target has them normalised (DeepInversion: 0.05)."""
    variation_weight: NonNegativeFloat = 2.5e-5
    """Weight of the total variation (DeepInversion: 2.5e-5)."""
    statistics_weight: NonNegativeFloat = 10.0
    """Weight of the distance to the batch norms' statistics (DeepInversion: 10)."""
    jitter: NonNegativeInt = 2
    """Pixels by which images are shifted around at most, anew in each step (DeepInversion: 2)."""
    group: PositiveInt = 256
    """Images whose statistics are taken together, of all classes in turn; they are in memory at once
    (DeepInversion: 256)."""

    @property
    def access(self) -> Access:
        return Access.WHITE_BOX

    @property
    def joint(self) -> bool:
        """A batch's statistics are those of all its classes together."""
        return True

    @property
    def image_steps(self) -> int:
        """Images that go forward and back for a class, over all steps."""
        return self.candidates * self.steps

    def check(self, target: Target, prior: Prior) -> None:
        """Refuse settings that contradict each other, before the first query.

        Raises:
            InputError: they do.
        """
        if not self.keep <= self.candidates:
            raise InputError(
                "MiFace: expected keep <= candidates, found "
                f"keep={self.keep}, candidates={self.candidates}"
            )

    def run(
        self,
        target: Target,
        prior: Prior,
        labels: Tensor,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
    ) -> Reconstructions:
        """Reconstruct each class in ``labels`` (distinct class indices), at the target's input size.

        Of ``prior`` nothing is used but the device that its images are on.

        Raises:
            InputError: the target gives no gradients, or the settings contradict each other.
        """
        check_fits(self, target, prior)
        seed = draw_seed(rng)
        device = prior.sample(1, rng=generator(0)).device
        shape = (self.candidates, *target.image_shape)
        drawn = [
            torch.randn(shape, generator=generator(seed, "start", label))
            for label in labels.tolist()
        ]
        # The classes' first candidates, then their second ones, and so on.
        noise = torch.stack(drawn, dim=1).flatten(0, 1)
        groups = list(
            zip(
                noise.split(self.group),
                labels.repeat(self.candidates).split(self.group),
                strict=True,
            )
        )
        found = []
        for done, (start, label) in enumerate(groups, start=1):
            found.append(self._images(target, start.to(device), label.to(device), seed))
            progress(done, len(groups) + 1, "pixels optimised")
        by_class = (
            torch.cat(found).unflatten(0, (self.candidates, -1)).transpose(0, 1).flatten(0, 1)
        )
        made = self.select(
            target, Pixels(target.image_shape, device), by_class,
            labels.repeat_interleave(self.candidates), rng=generator(seed, "crops"),
        ).reconstructions  # fmt: skip
        progress(len(groups) + 1, len(groups) + 1, "reconstructions selected")
        return made

    def _images(self, target: Target, noise: Tensor, labels: Tensor, seed: int) -> Tensor:
        """Images (N, C, S, S) in [0, 1] of the labels (N,), on the CPU, from standard normal noise."""
        objective = OBJECTIVES[self.objective]
        mean = noise.new_tensor(target.mean).view(1, -1, 1, 1)
        std = noise.new_tensor(target.std).view(1, -1, 1, 1)
        low, high = (0.0 - mean) / std, (1.0 - mean) / std
        shifts = generator(seed, "jitter")

        def clip(variables: Sequence[Tensor]) -> list[Tensor]:
            return [one.clamp(low, high) for one in variables]

        def losses(variables: Sequence[Tensor]) -> list[Tensor]:
            by = torch.randint(-self.jitter, self.jitter + 1, (2,), generator=shifts).tolist()
            pixels = variables[0].roll(by, dims=(2, 3))
            with record_batch_norms(target.module) as layers:
                loss = objective(target(pixels * std + mean), labels).mean()
            loss = loss + self.variation_weight * total_variation(pixels)
            return [loss + self.statistics_weight * sum(map(statistics_gap, layers))]

        (pixels,) = descend(
            clip([noise]), losses, steps=self.steps, constrain=clip,
            optimiser=lambda v: torch.optim.Adam(v, lr=self.learning_rate),
        )  # fmt: skip
        return (pixels * std + mean).clamp(0.0, 1.0).cpu()


def total_variation(images: Tensor) -> Tensor:
    """In [0, inf): lengths of the differences in four directions of all images (N, C, H, W) together."""
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
