"""TL-DMI: early layers come from public images, and only late ones see the private images.

Paper: Ho et al., "Model Inversion Robustness: Can Transfer Learning Help?", CVPR 2024. A network is
trained on other images, its early layers are frozen, the rest is fine-tuned on the private images: early
layers matter most for inversion, late ones for the classes. The paper pretrains on labelled public
images; ours have no classes of use, so the network learns to tell by how far an image was turned
(Gidaris et al. 2018).
Protects: the frozen layers hold nothing of the private images, running statistics and normalisation
included.
Does not protect: the layers above them hold what they learnt; gives no guarantee for a single image.
Costs: a training on four turns of each public image beforehand, which the undefended model does not
have; the fine-tuning keeps the recipe's budget. Accuracy where public images are few or unlike.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import PositiveInt
from torch import nn

from inversight.core.config import Fraction, settings
from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.defences.base import Defended, Level, Material
from inversight.defences.retraining import retrained
from inversight.models.networks import Classifier
from inversight.models.target import Target
from inversight.models.training import Variation, rotation_task, train_classifier


@settings
class TLDMI:
    """Pretrain on public images, freeze the early layers, fine-tune the rest."""

    freeze: Fraction = 0.5
    """Share of the layers below the logits that is frozen, counted from the input, rounded down."""
    pretraining_steps: PositiveInt = 2000
    """Most steps on the public images, as most_steps of a recipe; no published value."""

    @property
    def level(self) -> Level:
        return "model"

    def fit(
        self,
        material: Material,
        undefended: Target,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
        device: torch.device | str = "cpu",
    ) -> Defended:
        """Pretrain and fine-tune, both by the same recipe but for the steps of the pretraining.

        Raises:
            InputError: there are no public images.
        """
        if len(material.public) < 2:
            raise InputError("tl-dmi: needs public images to pretrain on; give --public DIR")
        channels, size, _ = material.image_shape
        seen = material.public.resized(size=size, channels=channels)
        pretrained = train_classifier(
            rotation_task(seen),
            training=replace(material.training, most_steps=self.pretraining_steps),
            image_shape=material.image_shape,
            rng=rng,
            progress=_half(progress, first=True),
            device=device,
        ).classifier
        layers = layers_below_logits(pretrained.module)
        frozen = layers[: int(self.freeze * len(layers))]
        start = {
            name: value
            for name, value in pretrained.module.state_dict().items()
            if not name.startswith("classifier.")
        }
        return retrained(
            "tl-dmi",
            material,
            undefended,
            variation=Variation(
                start=start, frozen=frozen, normalisation=(pretrained.mean, pretrained.std)
            ),
            facts={
                "frozen_layers": len(frozen),
                "layers": len(layers),
                "public_images": len(material.public),
            },
            rng=rng,
            progress=_half(progress, first=False),
            device=device,
        )


def layers_below_logits(module: Classifier) -> tuple[str, ...]:
    """Names of the convolutions and normalisations from the input on, in the order of the network."""
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm)
    return tuple(name for name, child in module.named_modules() if isinstance(child, kinds))


def _half(progress: Progress, *, first: bool) -> Progress:
    """Reports one of two trainings as half of the work."""

    def report(done: int, total: int, note: str = "") -> None:
        if first:
            progress(done, 2 * total, f"public images, {note}" if note else "public images")
        else:
            progress(total + done, 2 * total, note)

    return report
