"""Every setting, the presets, and the tables of names; loads no PyTorch."""

from inversight.settings.audit import (
    DEFAULT_FDR,
    PAIR_MEASURES,
    AuditSettings,
    PairMeasure,
    check_guidance_embedding,
    documented,
    lay,
    prior_path,
    prior_training,
    resolve,
)
from inversight.settings.names import (
    ARMS,
    ATTACKS,
    BLACK_BOX,
    DEFENCES,
    EMBEDDINGS,
    Arm,
    arms_with,
    attacks_with,
)
from inversight.settings.presets import SHADOWS, attack_budgets, stage_budgets, with_budget
from inversight.settings.published import PublishedName, published_training
from inversight.settings.stages import (
    Adaptation,
    ClassifierArchitecture,
    PriorTraining,
    Training,
    resolve_prior_training,
)

__all__ = [
    "ARMS", "ATTACKS", "BLACK_BOX", "DEFAULT_FDR", "DEFENCES", "EMBEDDINGS", "PAIR_MEASURES",
    "SHADOWS", "Adaptation", "Arm", "AuditSettings", "ClassifierArchitecture", "PairMeasure",
    "PriorTraining", "PublishedName", "Training", "arms_with", "attack_budgets", "attacks_with",
    "check_guidance_embedding", "documented", "lay", "prior_path", "prior_training",
    "published_training", "resolve", "resolve_prior_training", "stage_budgets", "with_budget",
]  # fmt: skip
