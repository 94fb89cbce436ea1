"""Fine-tuning the prior against the target."""

from inversight.adaptation.adapt import adapt, check_arm, check_public, pulls_of
from inversight.adaptation.eigen import Eigenspace, PaperEigen, top_eigenspace
from inversight.adaptation.guidance import Guidance, Pull
from inversight.adaptation.preconditioners import Damped, Identity, Preconditioner

__all__ = [
    "Damped",
    "Eigenspace",
    "Guidance",
    "Identity",
    "PaperEigen",
    "Preconditioner",
    "Pull",
    "adapt",
    "check_arm",
    "check_public",
    "pulls_of",
    "top_eigenspace",
]
