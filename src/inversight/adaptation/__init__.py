"""Fine-tuning the prior against the target."""

from inversight.adaptation.adapt import ARMS, Adaptation, adapt, preconditioner_of
from inversight.adaptation.guidance import Guidance
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
    "adapt",
    "conjugate_gradients",
    "preconditioner_of",
]
