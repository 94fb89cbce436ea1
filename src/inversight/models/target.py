"""The model under audit: preprocessing and access."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.core.imaging import Resizing, fit, normalise, with_channels
from inversight.data import ImageSet
from inversight.models.networks import SavedClassifier

_LEAST_SCORE = 1e-12
"""Lower bound of probabilities, so that their logarithms are finite."""


class Access(StrEnum):
    """What an attacker gets from a target."""

    WHITE_BOX = "white-box"
    SCORES = "scores"
    LABEL = "label"


ACCESS_ORDER = (Access.LABEL, Access.SCORES, Access.WHITE_BOX)
"""From the least access to the most."""


@dataclass(frozen=True)
class Target:
    """A classifier of images, called with images (N, 1|3, h, w) in [0, 1] of any size.

    Images are resized to ``image_shape`` (C, H, W), the model's input, as ``resizing`` says or, without
    it, bilinearly as a whole. ``classes`` are its outputs in order; ``label_names`` are the names that
    its file gives them, () if none. White-box access gives logits (N, K) with gradients; scores access log
    probabilities without; label access a one-hot of the predicted class. ``outputs`` changes
    probabilities (N, K) before they are given out, in scores access alone. ``before`` is called with
    the number of images of each query and may refuse by raising. ``frozen_until`` names the last layer that
    training did not change, None if training changed all.
    """

    module: nn.Module
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    spec: str
    access: Access = Access.WHITE_BOX
    outputs: Callable[[Tensor], Tensor] | None = None
    before: Callable[[int], None] | None = None
    resizing: Resizing | None = None
    label_names: tuple[str, ...] = ()
    frozen_until: str | None = None

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def device(self) -> torch.device:
        """Device of the network; the CPU if it has no parameters."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def __call__(self, images: Tensor) -> Tensor:
        if self.before is not None:
            self.before(len(images))
        channels, height, width = self.image_shape
        if self.resizing is None:
            x = fit(images, size=(height, width), channels=channels)
        else:
            x = self.resizing(with_channels(images, channels), (height, width))
        white_box = self.access is Access.WHITE_BOX
        with torch.set_grad_enabled(white_box and torch.is_grad_enabled()):
            logits: Tensor = self.module(normalise(x, self.mean, self.std))
        if isinstance(logits, Tensor):  # other types are refused when a target is loaded
            logits = logits.to(x.dtype)
        if white_box:
            return logits
        if self.access is Access.LABEL:
            return F.one_hot(logits.argmax(1), logits.shape[1]).to(x.dtype)
        if self.outputs is None:
            return F.log_softmax(logits, dim=1)
        return self.outputs(logits.softmax(1)).clamp_min(_LEAST_SCORE).log()

    def restricted(self, access: Access) -> Target:
        """Return the same target with at most ``access``."""
        return replace(self, access=min(access, self.access, key=ACCESS_ORDER.index))

    def to(self, device: torch.device | str) -> Target:
        """Return the same target with its network on ``device``."""
        return replace(self, module=self.module.to(device))


def target_of(saved: SavedClassifier, spec: str) -> Target:
    """Return a trained classifier as a target."""
    module = saved.module.eval().requires_grad_(False)
    return Target(module, saved.classes, saved.image_shape, saved.mean, saved.std, spec)


@torch.no_grad()
def accuracy_on(target: Target, images: ImageSet, batch_size: int = 64) -> float:
    """Return the fraction of ``images``, in [0, 1], that the target puts in their class."""
    parts = map(images.select, torch.arange(len(images)).split(batch_size))
    hits = [target(p.floats().to(target.device)).argmax(1).cpu() == p.labels for p in parts]
    return int(torch.cat(hits).sum()) / len(images)


def describe_target(target: Target) -> dict[str, Any]:
    """Return facts about a target for the run's manifest."""
    return {
        "spec": target.spec,
        "access": str(target.access),
        "classes": target.num_classes,
        "image_shape": list(target.image_shape),
        "mean": list(target.mean),
        "std": list(target.std),
        "resizing": None if target.resizing is None else asdict(target.resizing),
    }
