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
from inversight.settings.names import ARMS, ATTACKS, DEFENCES, EMBEDDINGS, Arm
from inversight.settings.presets import SHADOWS, attack_budgets, stage_budgets
from inversight.settings.published import PublishedName, published_training
from inversight.settings.stages import (
    Adaptation,
    ClassifierArchitecture,
    PriorTraining,
    Training,
    resolve_prior_training,
)

__all__ = [
    "ARMS", "ATTACKS", "DEFAULT_FDR", "DEFENCES", "EMBEDDINGS", "PAIR_MEASURES", "SHADOWS", "Adaptation", "Arm",
    "AuditSettings", "ClassifierArchitecture", "PairMeasure", "PriorTraining", "PublishedName",
    "Training", "attack_budgets", "check_guidance_embedding", "documented", "lay", "prior_path",
    "prior_training", "published_training", "resolve", "resolve_prior_training", "stage_budgets",
]  # fmt: skip
