"""Purification: the model is unchanged, and its scores are made coarser.

Paper: the name is Yang et al.'s, "Defending Model Inversion and Membership Inference Attacks via
Prediction Purification", 2020, who train a network for it; rounding scores is Fredrikson et al.'s (CCS
2015), and giving out the top classes only is common (Shokri et al. 2017). These are the plain forms.
Protects: gives an attacker with access to scores a coarser signal.
Does not protect: it has no effect against an attacker who has the weights, and next to none against
label access, because labels stay the same; attacks for labels work on coarse scores too. Averages over
many slightly changed queries can recover rounded values.
Costs: no accuracy, since the best class stays; scores are no longer calibrated.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.core.config import settings, to_mapping
from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.defences.base import DefenceData, Defended, Level
from inversight.models.target import Target

_LEAD = 1e-6
"""Added to the best class, so that it stays the best where rounding makes a tie."""


@settings
class Purification:
    """Give out coarser scores: softened, top classes only, rounded, in this order."""

    level: ClassVar[Level] = "output"

    decimals: NonNegativeInt | None = 1
    """Decimals that scores are rounded to (Fredrikson et al. 2015: 0.05 to 0.1 stops their attack)."""
    top_k: PositiveInt | None = None
    """Number of classes whose scores are given out, the others are 0; all by default."""
    temperature: PositiveFloat = 1.0
    """Scores are raised to the power 1 / temperature: above 1 more even, below 1 more confident."""

    def fit(
        self, data: DefenceData, undefended: Target, *, rng: torch.Generator,
        progress: Progress = silent, device: torch.device | str = "cpu",
    ) -> Defended:  # fmt: skip
        """Return the undefended target with coarser scores; nothing is trained and nothing can be saved.

        Raises:
            InputError: the settings change nothing.
        """
        if self.decimals is None and self.top_k is None and self.temperature == 1.0:
            raise InputError(
                "purification: these settings change nothing; set decimals, top_k or temperature"
            )
        facts = {name: value for name, value in to_mapping(self).items() if value is not None}
        progress(1, 1)
        spec = f"{undefended.spec}, purification"
        target = replace(undefended, outputs=self.coarser, spec=spec).to(device)
        return Defended(target, classifier=None, facts=facts)

    def coarser(self, probabilities: Tensor) -> Tensor:
        """Return coarser probabilities (N, K) that sum to 1, with the same best class."""
        best = probabilities.argmax(1, keepdim=True)
        p = probabilities.log().div(self.temperature).softmax(1)
        if self.top_k is not None and self.top_k < p.shape[1]:
            kept = probabilities.topk(self.top_k, dim=1).indices
            p = torch.zeros_like(p).scatter(1, kept, p.gather(1, kept))
            p = p.scatter(1, best, p.gather(1, best))
        if self.decimals is not None:
            p = p.round(decimals=self.decimals)
        p = p.scatter(1, best, p.amax(1, keepdim=True) + _LEAD)
        return p / p.sum(1, keepdim=True)
