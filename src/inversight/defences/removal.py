"""Removal: exposed images are not trained on.

Paper: none of its own; retraining without images is the plain form of unlearning (Bourtoule et al.,
S&P 2021, who make it cheap).
Protects: what the removed images alone would have taught. The model is one that never saw them, and
neither their pixels nor statistics of them can be in it.
Does not protect: the rest, among which others may become the exposed ones (the "onion effect",
Carlini et al. 2022); nor what a removed image shares with images that stay, near copies above all.
Costs: the accuracy that those images were worth, most where a class has few; a training without them.
"""

from __future__ import annotations

import torch

from inversight.core.config import settings
from inversight.core.progress import Progress, silent
from inversight.defences.base import Defended, Level, Material
from inversight.defences.retraining import check_classes_left, retrained
from inversight.models.target import Target


@settings
class Removal:
    """Train without the exposed images."""

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
        """Train on the other images by the same recipe.

        Raises:
            StageError: a class would be left without images.
        """
        check_classes_left(material, "removal")
        kept = material.private.select((~material.exposed).nonzero().squeeze(1))
        return retrained(
            "removal",
            material,
            undefended,
            images=kept,
            facts={"removed": int(material.exposed.sum())},
            rng=rng,
            progress=progress,
            device=device,
        )
