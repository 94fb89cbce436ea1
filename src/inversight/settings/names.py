"""The tables of names: arms, attacks, defences and embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AccessName = Literal["white-box", "scores", "label"]
"""What attackers get of a target; see :class:`inversight.models.target.Access`."""


@dataclass(frozen=True)
class Arm:
    """A way to fine-tune the prior against the target."""

    name: str
    meaning: str
    """What guides the generator, beside the adversarial loss."""
    weight: float = 0.0
    """Weight of the guidance if ``adaptation.weight`` is not set; from a few trials (docs/evidence.md),
    except for pseudo-labels and target-aware, which take that of the paper's arms."""
    terms: tuple[str, ...] = ()
    """Keys of :data:`inversight.adaptation.terms.TERMS`."""
    natural_gradient: bool = False
    """The gradient is replaced by its natural gradient under the guidance embedding."""
    projected: bool = False
    """A discriminator of the target's feature maps guides too, and ``terms`` count half as much. The
    target needs convolutions."""
    batch_norm: bool = False
    """The target needs batch normalisation, whose running statistics guide."""
    images_per_class: str | None = None
    """The setting of ``adaptation`` with the number of public images of each class, for an arm that
    conditions the prior on the classes that the target predicts for them."""
    classifying_discriminator: bool = False
    """The discriminator learns to predict the target's classes."""
    transformed: bool = False
    """The target sees randomly transformed images."""
    least_access: AccessName = "white-box"
    """What the arm has to get of the target: gradients, scores, or nothing beyond labels."""
    published_weight: str | None = None
    """The setting of ``adaptation`` with the weight of a published attack; used with scale absolute."""

    @property
    def conditional(self) -> bool:
        """Whether the prior is conditioned on the target's classes."""
        return self.images_per_class is not None


ARMS = {
    arm.name: arm
    for arm in (
        Arm("vanilla", "nothing; the prior is only trained further", least_access="label"),
        Arm("entropy", "the entropy of the target's prediction", 0.3, ("entropy",)),
        Arm(
            "natural-gradient", "the natural gradient of that entropy under the guidance embedding "
            "(the paper's arm)", 0.3, ("entropy",), natural_gradient=True,
        ),
        Arm(
            "balanced", "the entropy, and equal numbers of images for all classes", 0.3,
            ("entropy", "balance"),
        ),
        Arm(
            "statistics", "the running statistics of the target's batch normalisation", 1.0,
            ("statistics",), batch_norm=True,
        ),
        Arm(
            "projected", "a second discriminator on the target's feature maps", 3.0, projected=True,
        ),
        Arm(
            "diverse", "projected, and different images from different latents", 3.0, ("spread",),
            projected=True,
        ),
        Arm(
            "conditional", "diverse, with a prior that is conditioned on the target's classes", 3.0,
            ("spread",), projected=True, images_per_class="conditional_top",
        ),
        Arm(
            "pseudo-labels", "the max-margin loss, with a prior that is conditioned on the target's "
            "classes (PLG-MI)", 0.3, ("margin",), images_per_class="pseudo_labels_top",
            transformed=True, published_weight="pseudo_labels_alpha",
        ),
        Arm(
            "target-aware", "the entropy of a discriminator that predicts the target's classes (KED-MI)",
            0.3, ("critic_entropy",), classifying_discriminator=True,
            least_access="scores", published_weight="target_aware_entropy",
        ),
    )
}  # fmt: skip
"""The first three are the paper's, the last two each one half of a published attack."""

ATTACKS = {
    name: f"inversight.attacks:{cls}"
    for name, cls in {
        "plug-and-play": "PlugAndPlay", "gmi": "Gmi", "ked-mi": "KedMi", "vmi": "Vmi",
        "mirror": "Mirror", "lomma": "Lomma", "if-gmi": "IfGmi", "plg-mi": "PlgMi",
        "ppdg": "Ppdg", "mi-face": "MiFace", "weight-reconstruction": "WeightReconstruction",
        "mirror-black-box": "MirrorGenetic", "cma-es": "CmaEs", "c2f-mi": "C2fMi", "rlb-mi": "RlbMi",
        "brep-mi": "BrepMi", "lokt": "Lokt",
    }.items()
}  # fmt: skip
"""Import paths of the attacks."""

BLACK_BOX: dict[str, tuple[str, ...]] = {
    "scores": ("cma-es", "mirror-black-box", "c2f-mi", "rlb-mi"),
    "label": ("brep-mi", "lokt"),
}
"""Attacks that need no more than an access, the one to begin with first (docs/attacks.md)."""


def attacks_with(access: str) -> tuple[str, ...]:
    """Return the names of the attacks that ``access`` (white-box, scores or label) is enough for."""
    if access == "white-box":
        return tuple(ATTACKS)
    return (*(BLACK_BOX["scores"] if access == "scores" else ()), *BLACK_BOX["label"])


def arms_with(access: str) -> tuple[str, ...]:
    """Return the names of the arms that ``access`` (white-box, scores or label) is enough for."""
    order = ("label", "scores", "white-box")
    return tuple(
        a.name for a in ARMS.values() if a.least_access in order[: order.index(access) + 1]
    )


DEFENCES = {
    name: f"inversight.defences:{cls}"
    for name, cls in {
        "removal": "Removal", "down-weighting": "DownWeighting", "augmentation": "Augmentation",
        "replacement": "Replacement", "dp-sgd": "DPSGD", "mid": "MID", "bido": "BiDO",
        "negative-label-smoothing": "NegativeLabelSmoothing", "tl-dmi": "TLDMI", "rolss": "RoLSS",
        "purification": "Purification",
    }.items()
}  # fmt: skip
"""Import paths of the defences."""

EMBEDDINGS = (
    "lpips-vgg", "lpips-alex", "lpips-squeeze", "inception", "pixel", "public", "evaluator",
    "backbone",
)  # fmt: skip
"""Names of the embeddings; :func:`inversight.embeddings.named.named_embedding` makes them."""
