"""Fine-tunes the prior against the target: the adversarial game goes on, and the target pulls.

Li et al. 2025 (METHOD section 3), three arms: ``vanilla`` is the GAN loss alone, ``entropy`` adds the
entropy of the target's prediction, ``natural-gradient`` replaces that entropy's gradient on the
generated images by its natural gradient under a perceptual metric.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.adaptation.guidance import Guidance
from inversight.adaptation.preconditioners import Damped, Identity, Preconditioner
from inversight.config import Fraction, settings
from inversight.embeddings.base import Embedding
from inversight.errors import ConfigError
from inversight.objectives import Objective, entropy
from inversight.priors import PriorTraining, StylePrior, Watch, play
from inversight.priors.processes import ALONE, Processes
from inversight.progress import Progress, silent
from inversight.target import Target

ARMS = ("vanilla", "entropy", "natural-gradient")


@settings
class Adaptation:
    """How the prior is fine-tuned against the target."""

    steps: NonNegativeInt = 1000
    """Steps of the adversarial game, with or without guidance; 0: the prior is used as it is."""
    batch_size: PositiveInt | None = None
    """Images a step, on all processes together; none: as many as the prior's own training had."""
    images_at_once: PositiveInt | None = None
    """Images that a process works on at once, a divisor of those it has in a step; none: as in the
    prior's own training. Lower it if memory runs out."""
    weight: NonNegativeFloat = 0.3
    """Length of the guidance's gradient on the images, relative to the GAN's; 0 is vanilla."""
    learning_rate_factor: PositiveFloat = 0.5
    """Learning rate relative to the prior's own training."""
    damping: PositiveFloat = 0.1
    """Damping of the metric's inverse, relative to its largest eigenvalue."""
    iterations: PositiveInt = 6
    """Conjugate-gradient steps for each natural gradient."""
    memory: Fraction = 0.98
    """Running mean's memory for the lengths of both gradients."""

    def training_of(self, training: PriorTraining) -> PriorTraining:
        """How the game goes on with a prior that ``training`` made."""
        return replace(
            training,
            batch_size=self.batch_size or training.batch_size,
            images_at_once=self.images_at_once or training.images_at_once,
        )


def preconditioner_of(arm: str, adaptation: Adaptation, metric: Embedding | None) -> Preconditioner:
    """The preconditioner that an arm uses.

    Raises:
        ConfigError: the natural gradient without a metric, or an unknown arm.
    """
    if arm in ("vanilla", "entropy"):
        return Identity()
    if arm != "natural-gradient":
        raise ConfigError(f"arm: expected vanilla, entropy or natural-gradient, found {arm!r}")
    if metric is None:
        raise ConfigError("arm natural-gradient needs a guidance embedding")
    return Damped(metric, damping=adaptation.damping, iterations=adaptation.iterations)


def adapt(
    prior: StylePrior,
    target: Target,
    public: Tensor,
    *,
    arm: str,
    adaptation: Adaptation,
    training: PriorTraining,
    metric: Embedding | None = None,
    objective: Objective = entropy,
    rng: torch.Generator,
    progress: Progress = silent,
    checkpoint: Path | None = None,
    watch: Watch | None = None,
    processes: Processes = ALONE,
) -> StylePrior:
    """The adapted prior. ``public``: uint8 images (N, C, S, S) at the prior's size.

    ``watch`` looks at it as it changes. With several ``processes`` each calls this alike.

    Raises:
        StageError: the game diverged.
    """
    guidance: Guidance | None = None
    if arm != "vanilla" and adaptation.weight > 0:
        guidance = Guidance(
            target,
            objective=objective,
            preconditioner=preconditioner_of(arm, adaptation, metric),
            weight=adaptation.weight,
            memory=adaptation.memory,
        )
    return play(
        public,
        training=adaptation.training_of(training),
        start=prior,
        steps=adaptation.steps,
        learning_rate_factor=adaptation.learning_rate_factor,
        guidance=guidance,
        rng=rng,
        progress=progress,
        checkpoint=checkpoint,
        watch=watch,
        processes=processes,
    )
