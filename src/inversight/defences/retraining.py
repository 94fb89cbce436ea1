"""Training a defended model by the undefended one's recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from inversight.core.errors import StageError
from inversight.core.progress import Progress, silent
from inversight.data import ImageSet
from inversight.defences.base import Defended, Material
from inversight.models.target import Target, target_of
from inversight.models.training import PLAIN, Variation, train_classifier
from inversight.settings import Training


def retrained(
    name: str,
    material: Material,
    undefended: Target,
    *,
    rng: torch.Generator,
    images: ImageSet | None = None,
    training: Training | None = None,
    variation: Variation = PLAIN,
    facts: Mapping[str, float | int | str] | None = None,
    progress: Progress = silent,
    device: torch.device | str = "cpu",
) -> Defended:
    """Train on ``images`` (by default all private ones) by ``material``'s recipe, but for ``variation``.

    ``training`` replaces the recipe where a defence cannot keep it. The target has the access that
    ``undefended`` gives.

    Raises:
        StageError: the loss stopped being a number.
    """
    trained = train_classifier(
        material.private if images is None else images,
        training=training or material.training,
        image_shape=material.image_shape,
        rng=rng,
        progress=progress,
        device=device,
        variation=variation,
    )
    target = target_of(trained.classifier, f"{undefended.spec}, {name}")
    return Defended(
        target=replace(target, access=undefended.access).to(device),
        classifier=trained.classifier,
        facts={**(facts or {}), "epochs": trained.epochs},
    )


def check_classes_left(material: Material, name: str) -> None:
    """Refuse to go on where every image of a class is exposed.

    Raises:
        StageError: naming the first such class.
    """
    private = material.private
    for label in private.labels.unique().tolist():
        if bool(material.exposed[private.labels == label].all()):
            raise StageError(
                f"{name}: all images of class {private.classes[label]} are to be protected, so none "
                "is left to train the class on; protect fewer, add images, or choose a defence of "
                "the whole model"
            )
