"""IF-GMI (Qiu et al., ECCV 2024): Plug & Play that goes on in the generator's features.

Threat model: white box. The attacker has the target's weights and the weights of a prior trained on
public images. First W is searched, then, layer by layer, the features that the next block starts from
together with W, each within an L1 ball around where the layer's search began. What differs from the
paper, and why:

- What the blocks before a layer add to the image is kept (the published code drops it, which makes
  another image before the search of the layer begins).
- Radii are in proportion to the coordinates of W (published: absolute, for the 512 of StyleGAN2), so that
  they bind in small generators too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.base import intermediate_of
from inversight.attacks.constraints import within_l1_ball
from inversight.attacks.objectives import OBJECTIVES
from inversight.attacks.plug_and_play import DescentInW
from inversight.attacks.search import Candidates, Improve, Problem
from inversight.core.config import settings
from inversight.models.target import Target
from inversight.priors.base import BlockFeatures, Prior
from inversight.priors.descent import Losses, descend

_WIDTH = 512
"""Coordinates of W that published radii are for."""


@settings
class IfGmi(DescentInW):
    """IF-GMI: optimise W, then intermediate features layer by layer.

    The latents it gives back are the W of each image, which does not make the image alone.
    """

    layers: NonNegativeInt = 4
    """Layers whose features are searched, from the lowest resolution up (published: 4); at most one
    less than the prior has blocks."""
    layer_steps: PositiveInt = 25
    """Steps at each layer (published: 25)."""
    radius: PositiveFloat = 1000.0
    """L1 radius for a W of 512 coordinates, in proportion for others; at layer 1, 2, ... it is 2, 3, ...
    times as large, for W and for features (published: 1,000)."""

    @property
    def image_steps(self) -> int:
        return self.candidates * (self.steps + self.layers * self.layer_steps)

    def check(self, target: Target, prior: Prior) -> None:
        super().check(target, prior)
        intermediate_of(self, prior)

    def begin(self, problem: Problem) -> Improve:
        objective = OBJECTIVES[self.objective]
        prior = intermediate_of(self, problem.prior)

        def search(start: Sequence[Tensor], losses: Losses, layer: int) -> list[Tensor]:
            def near(variables: Sequence[Tensor]) -> list[Tensor]:
                radius = (layer + 1) * self.radius * start[0][0].numel() / _WIDTH
                return [
                    within_l1_ball(one, centre, radius)
                    for one, centre in zip(variables, start, strict=True)
                ]

            return descend(
                start, losses, constrain=near, steps=self.layer_steps if layer else self.steps,
                optimiser=self.optimiser,
            )  # fmt: skip

        def improve(start: Tensor, labels: Tensor) -> Candidates:
            def of_latents(variables: Sequence[Tensor]) -> list[Tensor]:
                return [objective(problem.logits(variables[0]), labels)]

            (w,) = search([start], of_latents, 0)
            halfway: BlockFeatures | None = None
            for layer in range(1, min(self.layers, prior.blocks - 1) + 1):
                with torch.no_grad():
                    begun = prior.until(layer, w, halfway)

                def of_features(
                    variables: Sequence[Tensor], begun: BlockFeatures = begun
                ) -> list[Tensor]:
                    w, features = variables
                    images = prior.finish(replace(begun, features=features), w)
                    return [objective(problem.target(images), labels)]

                w, features = search([w, begun.features], of_features, layer)
                halfway = replace(begun, features=features)
            with torch.no_grad():
                images = problem.prior(w) if halfway is None else prior.finish(halfway, w)
            return Candidates(w, images.cpu())

        return improve
