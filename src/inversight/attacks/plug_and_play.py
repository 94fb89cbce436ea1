"""Plug & Play attack (Struppek et al., ICML 2022), the base attack of the paper.

Threat model: white box. The attacker has the target's weights and a prior trained on public images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import PositiveFloat
from torch import Tensor

from inversight.attacks.search import Candidates, Improve, LatentSearch, Problem, descend
from inversight.config import Fraction, settings
from inversight.objectives import OBJECTIVES, ObjectiveName


@settings
class PlugAndPlay(LatentSearch):
    """Plug & Play: choose latents, optimise them in W, keep those that survive random crops."""

    objective: ObjectiveName = "poincare"
    """What is descended (paper: poincare)."""
    learning_rate: PositiveFloat = 5e-3
    """Adam's step size (paper: 5e-3)."""
    betas: tuple[Fraction, Fraction] = (0.1, 0.1)
    """Adam's betas (paper: 0.1, 0.1)."""

    def begin(self, problem: Problem) -> Improve:
        objective = OBJECTIVES[self.objective]

        def improve(start: Tensor, labels: Tensor) -> Candidates:
            def losses(variables: Sequence[Tensor]) -> list[Tensor]:
                return [objective(problem.target(problem.prior(variables[0])), labels)]

            (latents,) = descend(
                [start], losses, steps=self.steps,
                optimiser=lambda v: torch.optim.Adam(v, lr=self.learning_rate, betas=self.betas),
            )  # fmt: skip
            return Candidates(latents)

        return improve
