"""Fine-tuning the prior against the target."""

from inversight.adaptation.adapt import ARMS, Adaptation, adapt, pulls_of
from inversight.adaptation.guidance import Guidance, Pull
from inversight.adaptation.preconditioners import (
    Damped,
    Identity,
    Preconditioner,
    conjugate_gradients,
)

__all__ = [
    "ARMS",
    "Adaptation",
    "Damped",
    "Guidance",
    "Identity",
    "Preconditioner",
    "Pull",
    "adapt",
    "conjugate_gradients",
    "pulls_of",
]
