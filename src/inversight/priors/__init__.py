"""Priors: generators of images like the public ones."""

from inversight.priors.architecture import Architecture
from inversight.priors.base import (
    Conditional,
    Critic,
    Halfway,
    Intermediate,
    Prior,
    Truncatable,
)
from inversight.priors.game import Game
from inversight.priors.style_prior import StylePrior, play, train_prior, untrained_prior
from inversight.priors.watch import Watch

__all__ = [
    "Architecture",
    "Conditional",
    "Critic",
    "Game",
    "Halfway",
    "Intermediate",
    "Prior",
    "StylePrior",
    "Truncatable",
    "Watch",
    "play",
    "train_prior",
    "untrained_prior",
]
