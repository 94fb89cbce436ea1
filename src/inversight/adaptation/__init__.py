"""Fine-tuning the prior against the target."""

from inversight.adaptation.adapt import ARMS, Adaptation, adapt, preconditioner_of
from inversight.adaptation.eigen import PaperEigen
from inversight.adaptation.guidance import Guidance
from inversight.adaptation.preconditioners import Damped, Identity, Preconditioner

__all__ = [
    "ARMS",
    "Adaptation",
    "Damped",
    "Guidance",
    "Identity",
    "PaperEigen",
    "Preconditioner",
    "adapt",
    "preconditioner_of",
]
