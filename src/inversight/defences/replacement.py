"""Replacement: each exposed image is trained on as a mixture of two others of its class.

Paper: mixup (Zhang et al., ICLR 2018), here within a class and in place of the image.
Protects: what the exposed images alone would have taught, as removal does: a replacement is made of
images that are not exposed, drawn whatever the exposed image looks like, so nothing of it reaches the
model. An exposed image's nearest neighbour would be a truer stand-in, but choosing it would tell where
the exposed image lies.
Does not protect: the other images, some of which now count for more and may become exposed themselves.
Costs: less accuracy than removal where classes are small, since the class keeps its weight; mixtures of
pixels are blurred images.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch

from inversight.core.config import settings
from inversight.core.imaging import to_float, to_uint8
from inversight.core.progress import Progress, silent
from inversight.data import ImageSet
from inversight.defences.base import Defended, Level, Material
from inversight.defences.retraining import check_classes_left, retrained
from inversight.models.target import Target


@settings
class Replacement:
    """Replace the exposed images by mixtures of others of their class."""

    @property
    def level(self) -> Level:
        return "sample"

    def fit(
        self,
        material: Material,
        undefended: Target,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
        device: torch.device | str = "cpu",
    ) -> Defended:
        """Train by the same recipe on as many images as before.

        Raises:
            StageError: a class has no image that is not exposed.
        """
        check_classes_left(material, "replacement")
        return retrained(
            "replacement",
            material,
            undefended,
            images=replaced(material, rng=rng),
            facts={"replaced": int(material.exposed.sum())},
            rng=rng,
            progress=progress,
            device=device,
        )


def replaced(material: Material, *, rng: torch.Generator) -> ImageSet:
    """The private set with each exposed image mixed anew from two others of its class.

    The two are drawn without replacement (a class with one such image gives that one), and mixed with
    a uniform share: mixup with alpha 1.
    """
    private, exposed = material.private, material.exposed
    images, hashes = private.images.clone(), list(private.hashes)
    for row in exposed.nonzero().squeeze(1).tolist():
        others = (~exposed & (private.labels == private.labels[row])).nonzero().squeeze(1)
        pair = others[torch.randperm(len(others), generator=rng)[:2]]
        share = float(torch.rand((), generator=rng))
        first, second = to_float(private.images[pair[[0, -1]]])
        images[row] = to_uint8(share * first + (1.0 - share) * second)
        hashes[row] = hashlib.sha256(images[row].numpy().tobytes()).hexdigest()
    return replace(private, images=images, hashes=tuple(hashes))
