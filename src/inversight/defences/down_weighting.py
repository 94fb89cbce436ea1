"""Down-weighting: exposed images count for less in the loss.

Paper: none of its own; a weight for each image in the loss, as in importance weighting.
Protects: lowers what exposed images teach, step by step, by their weight.
Does not protect: gives no guarantee, and a small weight is not little memory: a network that can fit
every image fits a weighted one too, later in training (Byrd & Lipton 2019). The images still pass
through the network, so the running statistics of batch normalisation and the channels' mean and
standard deviation hold them in full; removal alone takes them out.
Costs: part of the accuracy that removal costs.
"""

from __future__ import annotations

import torch

from inversight.core.config import Fraction, settings
from inversight.core.progress import Progress, silent
from inversight.defences.base import Defended, Level, Material
from inversight.defences.retraining import retrained
from inversight.models.target import Target
from inversight.models.training import Variation


@settings
class DownWeighting:
    """Let the exposed images count for less."""

    weight: Fraction = 0.1
    """What an exposed image counts for, others count for 1; no published value."""

    @property
    def level(self) -> Level:
        return "sample"

    def fit(
        self,
        material: Material,
        undefended: Target,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
        device: torch.device | str = "cpu",
    ) -> Defended:
        """Train on all images by the same recipe, its loss weighted."""
        weights = torch.where(material.exposed, self.weight, 1.0)
        return retrained(
            "down-weighting",
            material,
            undefended,
            variation=Variation(weights=weights),
            facts={"weighted": int(material.exposed.sum()), "weight": self.weight},
            rng=rng,
            progress=progress,
            device=device,
        )
