"""Priors: generators of images like the public ones."""

from inversight.priors.base import (
    BlockFeatures,
    Conditional,
    Critic,
    Intermediate,
    Prior,
    Truncatable,
)
from inversight.priors.monitor import SampleMonitor
from inversight.priors.style_prior import StylePrior
from inversight.priors.training import continue_training, train_prior, untrained_prior

__all__ = [
    "BlockFeatures",
    "Conditional",
    "Critic",
    "Intermediate",
    "Prior",
    "SampleMonitor",
    "StylePrior",
    "Truncatable",
    "continue_training",
    "train_prior",
    "untrained_prior",
]
