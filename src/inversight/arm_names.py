"""The names of the adaptation's arms, which the command line shows without loading what they need."""

from __future__ import annotations

ARM_NAMES = (
    "vanilla",
    "entropy",
    "natural-gradient",
    "balanced",
    "statistics",
    "projected",
    "diverse",
    "conditional",
    "pseudo-labels",
    "target-aware",
)
"""`inversight.adaptation.ARMS`."""
