"""Purification: the model stays as it is, and its answers are made coarser.

Paper: the name is Yang et al.'s, "Defending Model Inversion and Membership Inference Attacks via
Prediction Purification", 2020, who train a network for it; rounding scores is Fredrikson et al.'s (CCS
2015), and only the best classes is a common form (Shokri et al. 2017). These are the plain forms.
Protects: gives an attacker with scores access less to climb by.
Does not protect: does nothing at all against who has the weights, and next to nothing against label
access, whose answers it leaves as they are; attacks made for labels work on coarse scores too. Averages
over many slightly changed queries can win back what rounding took.
Costs: no accuracy, the best class stays; scores that are no longer calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.core.config import settings
from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.defences.base import Defended, Level, Material
from inversight.models.target import Target

_LEAD = 1e-6
"""What the best class is given above a tie that rounding makes."""


@settings
class Purification:
    """Give out coarser scores: softened, of the best classes only, rounded; in this order."""

    decimals: NonNegativeInt | None = 1
    """Decimals that scores are rounded to (Fredrikson et al. 2015: 0.05 to 0.1 stops their attack)."""
    top_k: PositiveInt | None = None
    """Classes whose scores are given out, the others are 0; all by default."""
    temperature: PositiveFloat = 1.0
    """Scores are raised to the power 1 / temperature: above 1 more even, below 1 more certain."""

    @property
    def level(self) -> Level:
        return "output"

    def fit(
        self,
        material: Material,
        undefended: Target,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
        device: torch.device | str = "cpu",
    ) -> Defended:
        """The undefended target with such answers; nothing is trained, and there is nothing to save.

        Raises:
            InputError: the settings change nothing.
        """
        if self.decimals is None and self.top_k is None and self.temperature == 1.0:
            raise InputError(
                "purification: these settings change nothing; set decimals, top_k or temperature"
            )
        outputs = Purified(self.decimals, self.top_k, self.temperature)
        facts: dict[str, float | int | str] = {"temperature": self.temperature}
        if self.decimals is not None:
            facts["decimals"] = self.decimals
        if self.top_k is not None:
            facts["top_k"] = self.top_k
        progress(1, 1)
        target = replace(undefended, outputs=outputs, spec=f"{undefended.spec}, purification")
        return Defended(target=target.to(device), classifier=None, facts=facts)


@dataclass(frozen=True)
class Purified:
    """Probabilities (N, K) -> coarser probabilities (N, K) that sum to 1, with the same best class."""

    decimals: int | None
    top_k: int | None
    temperature: float

    def __call__(self, probabilities: Tensor) -> Tensor:
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
