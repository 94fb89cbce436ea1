"""RoLSS: no skip connections in the last stage.

Paper: Koh et al., "On the Vulnerability of Skip Connections to Model Inversion Attacks", ECCV 2024:
removal of last-stage skip connections. Skip connections help gradients through the network, the
attack's too; the last stage's matter most.
Protects: makes attacks that follow the target's gradients find less.
Does not protect: gives no guarantee; it changes the way to the image and not what is stored, so attacks
without gradients are not concerned. Networks without skip connections (vgg) have nothing to remove.
Costs: some accuracy in deep networks; fewer parameters.
"""

from __future__ import annotations

import torch
from pydantic import PositiveInt

from inversight.core.config import settings
from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.defences.base import Defended, Level, Material
from inversight.defences.retraining import retrained
from inversight.models.networks import NetworkOptions, stages_for
from inversight.models.target import Target
from inversight.models.training import Variation


@settings
class RoLSS:
    """Leave the skip connections of the last stages out."""

    stages: PositiveInt = 1
    """How many stages, counted from the last (paper: 1)."""

    @property
    def level(self) -> Level:
        return "model"

    def fit(
        self,
        material: Material,
        undefended: Target,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
        device: torch.device | str = "cpu",
    ) -> Defended:
        """Train such a network by the same recipe.

        Raises:
            InputError: the recipe's network has no skip connections, or fewer stages.
        """
        if material.training.architecture != "resnet":
            raise InputError(
                f"rolss: a {material.training.architecture} has no skip connections to remove; train "
                "the target with architecture=resnet or choose another defence"
            )
        there = stages_for(material.image_shape[1])
        if self.stages > there:
            raise InputError(
                f"rolss: expected stages up to the network's {there}, found {self.stages}"
            )
        return retrained(
            "rolss",
            material,
            undefended,
            variation=Variation(network=NetworkOptions(skipless=tuple(range(-self.stages, 0)))),
            facts={"stages": self.stages},
            rng=rng,
            progress=progress,
            device=device,
        )
