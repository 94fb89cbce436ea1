"""IF-GMI (Qiu et al., ECCV 2024): Plug & Play that continues in the generator's features.

Threat model: white box. The attacker has the target's weights and the weights of a prior trained on
public images. First W is searched. Then, layer by layer, the input features of the next block and W are
searched together, each within an L1 ball around its start in that layer. Differences from the paper:

- What the earlier blocks add to the image is kept (the published code drops it, so the image changes
  before the search of a layer begins).
- Radii are proportional to the number of coordinates of W (published: absolute, for the 512 of
  StyleGAN2), so that they constrain small generators too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.base import require_intermediate
from inversight.attacks.constraints import project_to_l1_ball
from inversight.attacks.gradient_search import Candidates, Improve, LatentProblem
from inversight.attacks.plug_and_play import DescentInW
from inversight.attacks.workload import Workload
from inversight.core.config import settings
from inversight.models.target import Target
from inversight.priors.base import BlockFeatures, Intermediate, Prior
from inversight.priors.descent import descend

_WIDTH = 512
"""Coordinates of W for which the radii are published."""


@settings
class IfGmi(DescentInW):
    """IF-GMI: optimise W, then intermediate features layer by layer.

    The latents that it returns are the W of each image, which alone does not generate the image.
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
        require_intermediate(self, prior)

    def workload(self, prior: Prior) -> Workload:
        work = super().workload(prior)
        if isinstance(prior, Intermediate):
            layers = min(self.layers, prior.blocks - 1)
            work = replace(work, backward=replace(self, layers=layers).image_steps)
        return work

    def begin(self, problem: LatentProblem) -> Improve:
        prior = require_intermediate(self, problem.prior)

        def search(
            start: list[Tensor],
            logits: Callable[[Sequence[Tensor]], Tensor],
            labels: Tensor,
            layer: int,
        ) -> list[Tensor]:
            radius = (layer + 1) * self.radius * start[0][0].numel() / _WIDTH
            return descend(
                start, lambda v: [self.loss(logits(v), labels)], optimiser=self.optimiser,
                steps=self.layer_steps if layer else self.steps,
                constrain=lambda v: [
                    project_to_l1_ball(one, centre, radius)
                    for one, centre in zip(v, start, strict=True)
                ],
            )  # fmt: skip

        def improve(start: Tensor, labels: Tensor) -> Candidates:
            (w,) = search([start], lambda v: problem.logits(v[0]), labels, layer=0)
            state: BlockFeatures | None = None
            for layer in range(1, min(self.layers, prior.blocks - 1) + 1):
                with torch.no_grad():
                    begun = prior.until(layer, w, state)

                def logits(v: Sequence[Tensor], begun: BlockFeatures = begun) -> Tensor:
                    return problem.target(prior.finish(replace(begun, features=v[1]), v[0]))

                w, features = search([w, begun.features], logits, labels, layer)
                state = replace(begun, features=features)
            with torch.no_grad():
                images = problem.prior(w) if state is None else prior.finish(state, w)
            return Candidates(w, images.cpu())

        return improve
