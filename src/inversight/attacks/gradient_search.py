"""What white-box attacks share: the final selection, and the search that improves samples of a pool.

For :class:`GradientSearch` an attack says how candidates are found (:meth:`GradientSearch.search`).
:class:`LatentSearch` is the search that most of them share, Plug & Play's: it starts from the most
confident samples of a pool, and an attack says how they are improved (:meth:`LatentSearch.begin`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.base import Reconstructions, loss_with_critic, require_critic
from inversight.attacks.base_attack import Problem
from inversight.attacks.objectives import OBJECTIVES, ObjectiveName
from inversight.attacks.selection import CropSelection, Pool, classified_pool
from inversight.attacks.workload import Workload
from inversight.core.config import Fraction, settings
from inversight.core.device import reduced_precision
from inversight.core.progress import Progress, part_of
from inversight.core.seeding import generator
from inversight.models.target import Access, Target
from inversight.priors.base import Prior
from inversight.priors.descent import descend


@dataclass(frozen=True)
class Candidates:
    """Candidates of all classes, class by class and as many of each.

    latents: (N, ...). images: (N, C, H, W) on the CPU, if they are not what the prior generates from
    the latents.
    """

    latents: Tensor
    images: Tensor | None = None


@dataclass(frozen=True)
class Pixels:
    """A stand-in for a prior whose latents are images."""

    image_shape: tuple[int, int, int]
    device: torch.device

    def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
        return torch.rand(n, *self.image_shape, generator=rng).to(self.device)

    def __call__(self, latents: Tensor) -> Tensor:
        return latents.to(self.device).clamp(0.0, 1.0)


ImageLoss = Callable[[Tensor, Tensor], Tensor]
"""Images (N, C, H, W) and labels (N,) -> losses (N,)."""


@settings
class GradientSearch(CropSelection, ABC):
    """A white-box attack: it finds candidates by gradients and keeps those that survive crops."""

    access: ClassVar[Access] = Access.WHITE_BOX
    ascending: ClassVar[tuple[str, ...]] = ("keep", "candidates")
    uses_critic: ClassVar[bool] = False
    """Whether the loss needs the prior's critic."""

    candidates: PositiveInt = 200
    """Candidates of each class, all of which are tried with crops (Plug & Play: 200)."""
    objective: ObjectiveName
    """The loss of the target's logits."""
    steps: PositiveInt
    """Gradient steps of the search."""
    learning_rate: PositiveFloat
    """Step size."""

    @property
    def image_steps(self) -> int:
        """Images of each class that go forward and back, over all steps."""
        return self.candidates * self.steps

    def workload(self, prior: Prior) -> Workload:
        return Workload(
            self.keep, self.batch_size, forward=self.candidates * self.crops,
            backward=self.image_steps, at_once=self.candidates, scales="candidates",
            limited=("keep", "candidates"),
            loss=loss_with_critic(prior) if self.uses_critic else None,
        )  # fmt: skip

    def check(self, target: Target, prior: Prior) -> None:
        super().check(target, prior)
        if self.uses_critic:
            require_critic(self, prior)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the objective (N,) of logits (N, K) and labels (N,)."""
        return OBJECTIVES[self.objective](logits, labels)

    def image_loss(self, problem: Problem) -> ImageLoss:
        """Return the loss that is descended, as a function of images."""
        return lambda images, labels: self.loss(problem.target(images), labels)

    def optimiser(self, variables: list[Tensor]) -> torch.optim.Optimizer:
        """Return the optimiser of the search."""
        return torch.optim.Adam(variables, lr=self.learning_rate)

    @abstractmethod
    def search(self, problem: Problem) -> Candidates:
        """Return ``candidates`` candidates of each class, or fewer."""

    def reconstruct(self, problem: Problem) -> Reconstructions:
        whole = 1000  # steps of the progress, the last of which is the selection
        part = part_of(problem.progress, before=0, share=whole - 1, whole=whole)
        found = self.search(replace(problem, progress=part))
        reconstructions = self.select(problem, found)
        problem.progress(whole, whole, "reconstructions selected")
        return reconstructions

    def select(self, problem: Problem, found: Candidates) -> Reconstructions:
        """Return the candidates that survive random crops, or diverse ones among them."""
        shown, labels = found.latents, problem.labels_of(found.latents)
        if found.images is not None:
            channels, height, width = found.images.shape[1:]
            prior = Pixels((channels, height, width), problem.device)
            problem, shown = replace(problem, prior=prior), found.images
        rng = generator(problem.seed, "crops")
        sure = self.robust_confidence(problem, shown, labels, rng=rng)
        best, rows = self.best_of(problem, shown, 1.0 - sure, ranking=sure)
        return replace(best, latents=found.latents[rows.to(found.latents.device)].cpu())


@dataclass(frozen=True)
class LatentProblem(Problem):
    """A problem with a pool of classified samples.

    logits: latents (N, ...) -> the target's logits (N, K) of their images, differentiable.
    """

    pool: Pool
    logits: Callable[[Tensor], Tensor]


Improve = Callable[[Tensor, Tensor], Candidates]
"""Latents (N, ...) and their labels (N,) -> the improved candidates."""


@settings
class LatentSearch(GradientSearch, ABC):
    """A search that improves the most confident samples of a pool by gradients, each independently."""

    ascending: ClassVar[tuple[str, ...]] = ("keep", "candidates", "pool")

    pool: PositiveInt = 5000
    """Latents sampled and classified once, for all classes together (Plug & Play: 5,000)."""
    truncation: Fraction = 0.5
    """Truncation of the pool towards the mean latent (Plug & Play: 0.5)."""
    steps: PositiveInt = 70
    """Steps of each candidate (Plug & Play: 70)."""
    half: bool = False
    """Search and select in bfloat16 where the hardware is faster at it (papers: float32); the final
    images are computed in float32. Its rounding depends on what else is in a batch."""

    def workload(self, prior: Prior) -> Workload:
        return replace(super().workload(prior), shared={"pool": self.pool}, half=self.half)

    def logits(self, target: Target, prior: Prior) -> Callable[[Tensor], Tensor]:
        """Return a function from latents (N, ...) to the target's logits (N, K), differentiable."""
        return lambda latents: target(prior(latents))

    def begin(self, problem: LatentProblem) -> Improve:
        """Return the function that improves a batch of candidates: by default the plain descent."""
        return self.descent(problem)

    def descent(
        self, problem: LatentProblem, *, rate: Callable[[float], float] | None = None,
        constrain: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None,
    ) -> Improve:  # fmt: skip
        """Return the descent of the objective in latents; see :func:`descend` for the options."""

        def improve(start: Tensor, labels: Tensor) -> Candidates:
            (latents,) = descend(
                [start], lambda variables: [self.loss(problem.logits(variables[0]), labels)],
                optimiser=self.optimiser, steps=self.steps, rate=rate, constrain=constrain,
            )  # fmt: skip
            return Candidates(latents)

        return improve

    def improved(self, problem: LatentProblem, start: Tensor, progress: Progress) -> Candidates:
        """Return all latents (N, ...) improved, batch by batch; an attack may drop some on the way."""
        improve, labels = self.begin(problem), problem.labels_of(start).to(start.device)
        parts = [x.split(self.batch_size) for x in (start, labels)]
        batches = []
        for done, (latents, wanted) in enumerate(zip(*parts, strict=True), start=1):
            batches.append(improve(latents, wanted))
            progress(done, len(parts[0]), "latents optimised")
        images = [batch.images for batch in batches if batch.images is not None]
        return Candidates(
            torch.cat([batch.latents for batch in batches]), torch.cat(images) if images else None
        )

    def search(self, problem: Problem) -> Candidates:
        pool = classified_pool(problem, self.pool, truncation=self.truncation)
        start = pool.latents[pool.best(problem.labels, self.candidates)].flatten(0, 1)
        with reduced_precision(problem.device, self.half):
            logits = self.logits(problem.target, problem.prior)
            latent_problem = LatentProblem(**vars(problem), pool=pool, logits=logits)
            return self.improved(latent_problem, start, problem.progress)

    def select(self, problem: Problem, found: Candidates) -> Reconstructions:
        with reduced_precision(problem.device, self.half):
            return super().select(problem, found)
