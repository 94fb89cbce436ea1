"""RoLSS: no skip connections in the last stage.

Paper: Koh et al., "On the Vulnerability of Skip Connections to Model Inversion Attacks", ECCV 2024:
removal of last-stage skip connections. Skip connections help gradients through the network, the
attack's too; the last stage's matter most.
Protects: makes attacks that use the target's gradients less effective.
Does not protect: gives no guarantee; it changes gradients, not what the network has memorised, so
attacks without gradients are not affected. Networks without skip connections (vgg) have nothing to
remove.
Costs: some accuracy in deep networks; fewer parameters.
"""

from __future__ import annotations

from pydantic import PositiveInt

from inversight.core.config import settings
from inversight.core.errors import InputError
from inversight.defences.base import DefenceData, FitContext, TrainingDefence, TrainingPlan
from inversight.models.networks import NetworkOptions, stages_for
from inversight.models.training import Variation


@settings
class RoLSS(TrainingDefence):
    """Remove the skip connections of the last stages."""

    name = "rolss"

    stages: PositiveInt = 1
    """Number of stages, counted from the last (paper: 1)."""

    def plan(self, data: DefenceData, context: FitContext) -> TrainingPlan:
        """Train a network without those skip connections.

        Raises:
            InputError: the recipe's network has no skip connections, or fewer stages.
        """
        if data.training.architecture != "resnet":
            raise InputError(
                f"rolss: a {data.training.architecture} has no skip connections to remove; train "
                "the target with architecture=resnet or choose another defence"
            )
        available = stages_for(data.image_shape[1])
        if self.stages > available:
            raise InputError(
                f"rolss: expected stages up to the network's {available}, found {self.stages}"
            )
        return TrainingPlan(
            variation=Variation(network=NetworkOptions(skipless=tuple(range(-self.stages, 0)))),
            facts={"stages": self.stages},
        )
