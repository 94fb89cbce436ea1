"""Priors: generators of images like the public ones."""

from inversight.priors.architecture import Architecture
from inversight.priors.base import Prior, Truncatable
from inversight.priors.style_prior import StylePrior, play, train_prior
from inversight.priors.training import Game, PriorTraining

__all__ = [
    "Architecture",
    "Game",
    "Prior",
    "PriorTraining",
    "StylePrior",
    "Truncatable",
    "play",
    "train_prior",
]
