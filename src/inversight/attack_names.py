"""The names of the attacks, which the command line shows without loading what attacks need."""

from __future__ import annotations

ATTACK_NAMES = (
    "plug-and-play",
    "gmi",
    "ked-mi",
    "vmi",
    "mirror",
    "lomma",
    "if-gmi",
    "plg-mi",
    "mi-face",
    "mirror-black-box",
    "cma-es",
    "c2f-mi",
    "rlb-mi",
    "brep-mi",
    "lokt",
)
"""The keys of `inversight.attacks.ATTACKS`, in their order."""
