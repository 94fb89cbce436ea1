"""PLG-MI's reconstruction (Yuan et al., AAAI 2023): the max-margin loss down, within a class's samples.

Threat model: white box. The attacker has the target's weights and a prior conditioned on its classes, as
the arm pseudo-labels of the adaptation makes one (their first stage). The constants are those of the
published code. What differs from it, and why:

- It searches in W, where a class's samples are its prior. Points are measured in standard deviations of
  these samples (:class:`Coordinates`), so that the step size is that of the paper's normal latents.
- It ends with crops, as Plug & Play (published: five random starts, of which each is kept).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.base import Reconstructions, check_fits, conditional_of
from inversight.attacks.constraints import Coordinates
from inversight.attacks.objectives import OBJECTIVES, ObjectiveName
from inversight.attacks.selection import FinalSelection
from inversight.core.config import settings
from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import draw_seed, generator
from inversight.models.target import Access, Target
from inversight.models.transformations import Transformations
from inversight.priors.base import Prior
from inversight.priors.descent import descend


@settings
class PlgMi(FinalSelection):
    """PLG-MI: from samples of the class, by Adam, on randomly transformed images."""

    pool: PositiveInt = 5000
    """Samples of each class, from which the mean and deviations of its latents are taken; the first
    are its candidates. None is sent to the target for it."""
    objective: ObjectiveName = "max-margin"
    """What is descended (paper: max-margin)."""
    steps: PositiveInt = 600
    """Steps of each candidate (published: 600)."""
    learning_rate: PositiveFloat = 0.1
    """Adam's step size (published: 0.1)."""
    transformations: PositiveInt = 2
    """Random transformations of an image in each step, whose losses are summed (published: 2)."""
    transform: Transformations = Field(default_factory=Transformations)
    """What is drawn for them; they mirror where the crops do."""

    @property
    def access(self) -> Access:
        return Access.WHITE_BOX

    @property
    def common(self) -> dict[str, int]:
        """Nothing is sent for all classes together: samples of a class only give mean and deviations."""
        return {}

    @property
    def image_steps(self) -> int:
        """Images that go forward and back for a class, over all steps."""
        return self.candidates * self.steps * self.transformations

    def check(self, target: Target, prior: Prior) -> None:
        """Refuse a prior of other classes and settings that contradict each other, before the first query.

        Raises:
            InputError: it is, or they do.
        """
        if not self.keep <= self.candidates <= self.pool:
            raise InputError(
                "PlgMi: expected keep <= candidates <= pool, found "
                f"keep={self.keep}, candidates={self.candidates}, pool={self.pool}"
            )
        conditional_of(self, prior, target.num_classes)

    def run(
        self,
        target: Target,
        prior: Prior,
        labels: Tensor,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
    ) -> Reconstructions:
        """Reconstruct each class in ``labels`` (distinct class indices).

        Raises:
            InputError: the target gives no gradients, the prior is not conditioned on as many classes
                as it has, or the settings contradict each other.
        """
        check_fits(self, target, prior)
        conditional = conditional_of(self, prior, target.num_classes)
        seed = draw_seed(rng)
        total = len(labels) + 1
        found = []
        for done, label in enumerate(labels.tolist(), start=1):
            wanted = torch.full((self.pool,), label)
            samples = conditional.sample_of(wanted, rng=generator(seed, "samples", label))
            space = Coordinates.of(samples)
            for start in samples[: self.candidates].split(self.batch_size):
                found.append(self._improved(target, prior, start, label, space, seed))
            progress(done, total, "latents optimised")
        made = self.select(
            target, prior, torch.cat(found), labels.repeat_interleave(self.candidates),
            rng=generator(seed, "crops"),
        ).reconstructions  # fmt: skip
        progress(total, total, "reconstructions selected")
        return made

    def _improved(
        self, target: Target, prior: Prior, start: Tensor, label: int, space: Coordinates, seed: int
    ) -> Tensor:
        """Latents (N, ...) of one class, searched from ``start``; all see the same transformations."""
        objective = OBJECTIVES[self.objective]
        labels = torch.full((len(start),), label, device=start.device)
        drawn = generator(seed, "transformations", label)

        def losses(variables: Sequence[Tensor]) -> list[Tensor]:
            images = prior(space.latents(variables[0]))
            shown = [
                self.transform(images, drawn, mirror=self.crop_flip)
                for _ in range(self.transformations)
            ]
            # One part: those that are descended one by one may not share a graph.
            return [torch.stack([objective(target(one), labels) for one in shown])]

        (points,) = descend(
            [space.points(start)], losses, steps=self.steps,
            optimiser=lambda v: torch.optim.Adam(v, lr=self.learning_rate),
        )  # fmt: skip
        return space.latents(points)
