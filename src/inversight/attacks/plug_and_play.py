"""Plug & Play attack (Struppek et al., ICML 2022), the base attack of the paper.

Threat model: white box. The attacker has the target's weights and a prior trained on public images.
Two additions to the paper are off by default: candidates that fall behind are dropped on the way
(successive halving, Jamieson and Talwalkar, AISTATS 2016), and steps can be compiled. Differences from the
published code:

- Images are not cropped at random in each step (published: to 90 to 100 % of their area).
- Starts are ranked by the image alone (published: with the mean over it and its mirror image).
- The step size is constant (published: a tenth of it from step 30 of 50, a hundredth from step 40).
- Truncation is that of the settings (published: 0.5 in the first 8 layers; its single w for all layers is that
  of the first, so in effect in all).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.gradient_search import Candidates, LatentProblem, LatentSearch
from inversight.attacks.objectives import ObjectiveName
from inversight.attacks.selection import most_confident
from inversight.attacks.workload import Workload
from inversight.core.config import Fraction, settings
from inversight.core.device import compiled
from inversight.core.progress import Progress, part_of
from inversight.core.seeding import generator
from inversight.models.target import Target
from inversight.priors.base import Prior


@settings
class DescentInW(LatentSearch):
    """The descent of Plug & Play, which other attacks build on."""

    objective: ObjectiveName = "poincare"
    """The loss (paper: poincare)."""
    learning_rate: PositiveFloat = 5e-3
    """Adam's step size (paper: 5e-3)."""
    betas: tuple[Fraction, Fraction] = (0.1, 0.1)
    """Adam's betas (paper: 0.1, 0.1)."""

    def optimiser(self, variables: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(variables, lr=self.learning_rate, betas=self.betas)


@settings
class PlugAndPlay(DescentInW):
    """Plug & Play: choose latents, optimise them in W, keep those that survive random crops."""

    halvings: NonNegativeInt = 0
    """How often the less confident half of a class's candidates is dropped, down to ``keep`` at
    least (with ``selection: diverse`` to twice as many, of which half are kept): at half of the steps,
    before that at a quarter, and so on (paper: 0)."""
    halving_crops: PositiveInt = 8
    """Random crops that rank the candidates at a halving; at most ``crops``."""
    compiled: bool = False
    """Compile the steps: takes half a minute, then steps are up to twice as fast. Without a compiler
    they run uncompiled."""

    @property
    def image_steps(self) -> int:
        return sum(steps * n for (steps, _), n in zip(self.rungs, self._remaining, strict=False))

    def workload(self, prior: Prior) -> Workload:
        halved = sum(n for n, left in pairwise(self._remaining) if left < n)
        crops = min(self.halving_crops, self.crops) * halved + self.crops * self._remaining[-1]
        return replace(super().workload(prior), forward=crops)

    @property
    def _remaining(self) -> list[int]:
        """Candidates of a class at the start, and after each rung."""
        return [self.candidates, *(left for _, left in self.rungs)]

    @property
    def rungs(self) -> list[tuple[int, int]]:
        """Steps until the next halving, and the candidates of a class that are left after it."""
        marks = [round(self.steps / 2**k) for k in range(self.halvings, 0, -1)]
        rungs, left = [], self.candidates
        least = self.keep if self.selection == "confident" else min(left, 2 * self.keep)
        for begun, mark in pairwise([0, *marks, self.steps]):
            if mark != self.steps:
                left = max(least, math.ceil(left / 2))
            rungs.append((mark - begun, left))
        return [(steps, left) for steps, left in rungs if steps > 0]

    def logits(self, target: Target, prior: Prior) -> Callable[[Tensor], Tensor]:
        if not self.compiled:
            return super().logits(target, prior)
        # Queries are counted outside of the compiled function.
        uncounted = super().logits(replace(target, before=None), prior)
        fast = compiled(uncounted, rows=self.batch_size)

        def counted(latents: Tensor) -> Tensor:
            if target.before is not None:
                target.before(len(latents))
            return fast(latents)

        return counted

    def improved(self, problem: LatentProblem, start: Tensor, progress: Progress) -> Candidates:
        latents, classes, done = start, len(problem.labels), 0
        for number, (steps, left) in enumerate(self.rungs):
            share = len(latents) // classes * steps
            part = part_of(progress, before=done, share=share, whole=self.image_steps)
            rung = replace(self, steps=steps, halvings=0)
            latents = super(PlugAndPlay, rung).improved(problem, latents, part).latents
            done += share
            if left * classes < len(latents):
                confidence = self.robust_confidence(
                    problem, latents, problem.labels_of(latents),
                    rng=generator(problem.seed, "halving", number),
                    crops=min(self.halving_crops, self.crops),
                )  # fmt: skip
                latents = latents[most_confident(confidence, classes, left).to(latents.device)]
        return Candidates(latents)
