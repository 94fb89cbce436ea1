"""Plug & Play attack (Struppek et al., ICML 2022), the base attack of the paper.

Threat model: white box. The attacker has the target's weights and a prior trained on public images.
What goes beyond the paper is off by default: candidates that fall behind are given up on the way
(successive halving, Jamieson and Talwalkar, AISTATS 2016), and steps can be compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.objectives import OBJECTIVES, ObjectiveName
from inversight.attacks.search import Candidates, Improve, LatentSearch, Problem
from inversight.attacks.selection import robust_confidence, surest
from inversight.core.config import Fraction, settings
from inversight.core.device import compiled
from inversight.core.progress import Progress
from inversight.core.seeding import generator
from inversight.models.target import Target
from inversight.priors.base import Prior
from inversight.priors.descent import descend


@settings
class DescentInW(LatentSearch):
    """How Plug & Play descends, and those that build on it."""

    objective: ObjectiveName = "poincare"
    """What is descended (paper: poincare)."""
    learning_rate: PositiveFloat = 5e-3
    """Adam's step size (paper: 5e-3)."""
    betas: tuple[Fraction, Fraction] = (0.1, 0.1)
    """Adam's betas (paper: 0.1, 0.1)."""

    def optimiser(self, variables: list[Tensor]) -> torch.optim.Optimizer:
        """What descends."""
        return torch.optim.Adam(variables, lr=self.learning_rate, betas=self.betas)


@settings
class PlugAndPlay(DescentInW):
    """Plug & Play: choose latents, optimise them in W, keep those that survive random crops."""

    halvings: NonNegativeInt = 0
    """How often the less sure half of a class's candidates is given up, though never fewer than
    ``keep`` are left: at half of the steps, before that at a quarter, and so on (paper: 0)."""
    halving_crops: PositiveInt = 8
    """Random crops that say at a halving which candidates are less sure; at most ``crops``."""
    compiled: bool = False
    """Compile the steps: half a minute first, after that up to twice as fast. Where there is no compiler
    they go on as they are."""

    @property
    def image_steps(self) -> int:
        return sum(steps * n for (steps, _), n in zip(self.rungs, self._numbers, strict=False))

    @property
    def crop_images(self) -> int:
        halved = sum(n for n, left in pairwise(self._numbers) if left < n)
        return self._looks * halved + self.crops * self._numbers[-1]

    @property
    def _looks(self) -> int:
        """Random crops at a halving."""
        return min(self.halving_crops, self.crops)

    @property
    def _numbers(self) -> list[int]:
        """Candidates of a class at first, and after each rung."""
        return [self.candidates, *(left for _, left in self.rungs)]

    @property
    def rungs(self) -> list[tuple[int, int]]:
        """Steps until the next halving, and the candidates of a class that are left after it."""
        marks = [round(self.steps / 2**k) for k in range(self.halvings, 0, -1)]
        found, left = [], self.candidates
        for begun, mark in pairwise([0, *marks, self.steps]):
            if mark != self.steps:
                left = max(self.keep, math.ceil(left / 2))
            found.append((mark - begun, left))
        return [(steps, left) for steps, left in found if steps > 0]

    def logits(self, target: Target, prior: Prior) -> Callable[[Tensor], Tensor]:
        plain = super().logits(target, prior)
        if not self.compiled:
            return plain
        # Counting what is sent is no part of what is compiled.
        uncounted = super().logits(replace(target, before=None), prior)
        fast = compiled(uncounted, rows=self.batch_size)

        def counted(latents: Tensor) -> Tensor:
            if target.before is not None:
                target.before(len(latents))
            return fast(latents)

        return counted

    def begin(self, problem: Problem) -> Improve:
        objective = OBJECTIVES[self.objective]

        def improve(start: Tensor, labels: Tensor) -> Candidates:
            def losses(variables: Sequence[Tensor]) -> list[Tensor]:
                return [objective(problem.logits(variables[0]), labels)]

            (latents,) = descend([start], losses, steps=self.steps, optimiser=self.optimiser)
            return Candidates(latents)

        return improve

    def improved(
        self, problem: Problem, start: Tensor, wanted: Tensor, progress: Progress
    ) -> tuple[Candidates, Tensor]:
        latents, total = start, self.image_steps
        classes = len(start) // self.candidates
        done = 0
        for number, (steps, left) in enumerate(self.rungs):
            rung = replace(self, steps=steps, halvings=0)
            now = len(latents) // classes * steps
            part = _part_of(progress, done, now, total)
            found, wanted = super(PlugAndPlay, rung).improved(problem, latents, wanted, part)
            latents, done = found.latents, done + now
            if left * classes < len(latents):
                rows = self._surer(problem, latents, wanted, left, number)
                latents, wanted = latents[rows.to(latents.device)], wanted[rows]
        return Candidates(latents), wanted

    def _surer(
        self, problem: Problem, latents: Tensor, wanted: Tensor, left: int, number: int
    ) -> Tensor:
        """Rows of the ``left`` surest candidates of each class."""
        confidence = robust_confidence(
            problem.target, problem.prior, latents, wanted,
            replace(self.crop_draws, count=self._looks),
            batch_size=self.batch_size, rng=generator(problem.seed, "halving", number),
        )  # fmt: skip
        return surest(confidence, len(wanted.unique()), left)


def _part_of(progress: Progress, before: int, share: int, whole: int) -> Progress:
    """Progress of a part that is ``share`` of ``whole``, ``before`` of which is done."""

    def tell(done: int, total: int, note: str = "") -> None:
        progress(before * total + share * done, whole * total, note)

    return tell
