"""Fine-tuning the prior against the target."""

from inversight.adaptation.adapt import adapt, check_arm, check_public, guidance_terms
from inversight.adaptation.eigen import Eigenspace, PaperEigen, top_eigenspace
from inversight.adaptation.guidance import Guidance, WeightedTerm
from inversight.adaptation.preconditioners import Damped, Preconditioner

__all__ = [
    "Damped", "Eigenspace", "Guidance", "PaperEigen", "Preconditioner", "WeightedTerm", "adapt",
    "check_arm", "check_public", "guidance_terms", "top_eigenspace",
]  # fmt: skip
