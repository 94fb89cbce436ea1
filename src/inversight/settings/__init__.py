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
from inversight.settings.strongest import (
    ATTACK_NAMES,
    STRONGEST,
    check_attack,
    is_strongest,
    replace_strongest,
    strongest_attack,
)

__all__ = [
    "ARMS", "ATTACKS", "ATTACK_NAMES", "BLACK_BOX", "DEFAULT_FDR", "DEFENCES", "EMBEDDINGS",
    "PAIR_MEASURES", "SHADOWS", "STRONGEST", "Adaptation", "Arm", "AuditSettings",
    "ClassifierArchitecture", "PairMeasure", "PriorTraining", "PublishedName", "Training", "arms_with",
    "attack_budgets", "attacks_with", "check_attack", "check_guidance_embedding", "documented",
    "is_strongest", "lay", "prior_path", "prior_training", "published_training", "replace_strongest",
    "resolve", "resolve_prior_training", "stage_budgets", "strongest_attack", "with_budget",
]  # fmt: skip
