"""Defences: each turns private images and an undefended target into a defended target."""

from inversight.defences.augmentation import Augmentation
from inversight.defences.base import (
    Defence,
    DefenceData,
    Defended,
    Level,
    TrainingDefence,
    TrainingPlan,
)  # fmt: skip
from inversight.defences.bido import BiDO
from inversight.defences.down_weighting import DownWeighting
from inversight.defences.dp_sgd import DPSGD
from inversight.defences.mid import MID
from inversight.defences.negative_label_smoothing import NegativeLabelSmoothing
from inversight.defences.purification import Purification
from inversight.defences.removal import Removal
from inversight.defences.replacement import Replacement
from inversight.defences.rolss import RoLSS
from inversight.defences.tl_dmi import TLDMI

__all__ = [
    "DPSGD", "MID", "TLDMI", "Augmentation", "BiDO", "Defence", "DefenceData", "Defended",
    "DownWeighting", "Level", "NegativeLabelSmoothing", "Purification", "Removal", "Replacement", "RoLSS",
    "TrainingDefence", "TrainingPlan",
]  # fmt: skip
