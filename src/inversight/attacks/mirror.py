"""MIRROR's white-box attack (An et al., NDSS 2022): descent in W, clipped in P.

Threat model: white box. The attacker has the target's weights and a prior trained on public images.
The constants are those of the published code. Differences from it:

- It keeps the latents of the last step, when the step size is 0 (published: those of the step at which
  the loss of the whole batch was lowest, which depends on what else is in the batch).
- It ends with crops, as Plug & Play.
"""

from __future__ import annotations

from pydantic import PositiveFloat, PositiveInt

from inversight.attacks.constraints import PSpace
from inversight.attacks.gradient_search import Improve, LatentProblem, LatentSearch
from inversight.attacks.objectives import ObjectiveName
from inversight.core.config import Fraction, settings
from inversight.priors.descent import ramp


@settings
class Mirror(LatentSearch):
    """MIRROR, white box: large steps in W that are clipped to the prior's usual range in P."""

    truncation: Fraction = 0.7
    """Truncation of the pool towards the mean latent (published: 0.7); the pool also gives the
    statistics of W."""
    objective: ObjectiveName = "cross-entropy"
    """The loss (paper: cross-entropy)."""
    steps: PositiveInt = 20000
    """Steps of each candidate (published: 20,000)."""
    learning_rate: PositiveFloat = 0.2
    """Adam's largest step size; it rises over the first 5 % of the steps and falls to 0 over the last
    quarter (published: 0.2)."""
    bound: PositiveFloat = 1.0
    """Standard deviations from the mean beyond which coordinates are clipped in P (published: 1)."""
    slope: PositiveFloat = 0.2
    """Negative slope of the leaky rectifier from P to W (StyleGAN: 0.2); 1 for latents that are not W,
    which are then clipped as they are."""

    def begin(self, problem: LatentProblem) -> Improve:
        space = PSpace.of(problem.pool.latents, slope=self.slope, bound=self.bound)
        return self.descent(problem, rate=ramp, constrain=lambda v: [space.clipped(v[0])])
