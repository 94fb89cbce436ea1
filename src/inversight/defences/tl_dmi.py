"""TL-DMI: early layers are trained on public images, and only late ones on private images.

Paper: Ho et al., "Model Inversion Robustness: Can Transfer Learning Help?", CVPR 2024. A network is
trained on other images, its early layers are frozen, the rest is fine-tuned on the private images:
early layers matter most for inversion, late ones for the classes. The paper pretrains on labelled
public images; public images here have no useful classes, so the network learns to predict by how far an
image was rotated (Gidaris et al. 2018).
Protects: the frozen layers, running statistics and normalisation included, do not depend on the private
images.
Does not protect: the layers above them are trained on the private images; gives no guarantee for a
single image.
Costs: a pretraining on four rotations of each public image, which the undefended model does not have;
the fine-tuning keeps the recipe's budget. Accuracy where public images are few or different.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import PositiveInt
from torch import nn

from inversight.core.config import Fraction, settings
from inversight.core.errors import InputError
from inversight.defences.base import DefenceData, FitContext, TrainingDefence, TrainingPlan
from inversight.models.networks import Classifier
from inversight.models.training import Variation, rotation_task, train_classifier


@settings
class TLDMI(TrainingDefence):
    """Pretrain on public images, freeze the early layers, fine-tune the rest."""

    name = "tl-dmi"

    freeze: Fraction = 0.5
    """Fraction of the layers below the logits to freeze, counted from the input, rounded down."""
    pretraining_steps: PositiveInt = 2000
    """Maximum number of steps on the public images, as most_steps of a recipe; no published value."""

    def plan(self, data: DefenceData, context: FitContext) -> TrainingPlan:
        """Pretrain, then fine-tune with the early layers frozen, both by the recipe.

        Raises:
            InputError: there are no public images.
        """
        if len(data.public) < 2:
            raise InputError("tl-dmi: needs public images to pretrain on; give --public DIR")
        channels, size, _ = data.image_shape
        seen = data.public.resized(size=size, channels=channels)
        pretrained = train_classifier(
            rotation_task(seen), training=replace(data.training, most_steps=self.pretraining_steps),
            image_shape=data.image_shape, rng=context.rng, device=context.device,
            progress=lambda done, total, note="": context.progress(
                done, 2 * total, ", ".join(filter(None, ("public images", note)))
            ),
        ).classifier  # fmt: skip
        layers = layers_below_logits(pretrained.module)
        frozen = layers[: int(self.freeze * len(layers))]
        start = {
            name: value
            for name, value in pretrained.module.state_dict().items()
            if not name.startswith("classifier.")
        }
        normalisation, public = (pretrained.mean, pretrained.std), len(data.public)
        return TrainingPlan(
            variation=Variation(start=start, frozen=frozen, normalisation=normalisation),
            facts={"frozen_layers": len(frozen), "layers": len(layers), "public_images": public},
            progress=lambda done, total, note="": context.progress(total + done, 2 * total, note),
        )


def layers_below_logits(module: Classifier) -> tuple[str, ...]:
    """Return the names of the convolutions and normalisations, from the input on."""
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm)
    return tuple(name for name, child in module.named_modules() if isinstance(child, kinds))
