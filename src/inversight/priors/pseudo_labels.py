"""What the target says of the public images, asked for once, before the game goes on."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.core.errors import ConfigError
from inversight.models.target import Target


@torch.no_grad()
def soft_labels(target: Target, public: Tensor, *, batch_size: int = 64) -> Tensor:
    """The target's log-probabilities (N, K) of public images, uint8 (N, C, S, S); on the CPU."""
    device = next((p.device for p in target.module.parameters()), torch.device("cpu"))
    parts = [
        target(images.to(device).float() / 255.0).log_softmax(1).cpu()
        for images in public.split(batch_size)
    ]
    return torch.cat(parts)


def pseudo_labels(
    scores: Tensor, top: int, *, setting: str = "pseudo_labels_top"
) -> tuple[Tensor, Tensor]:
    """Rows (K top,) of the ``top`` images that each class's score is highest of, and their classes.

    scores (N, K), for example log-probabilities. Class by class, the surest first; of equal ones the
    first. An image may serve several classes. Yuan et al. 2023 (PLG-MI), top-n selection. ``setting``
    is what ``top`` is called where it is set.

    Raises:
        ConfigError: there are fewer images than ``top``.
    """
    images, classes = scores.shape
    check_top(images, top, setting)
    order = scores.argsort(dim=0, descending=True, stable=True)[:top]
    return order.T.flatten(), torch.arange(classes).repeat_interleave(top)


def predicted_labels(scores: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Rows (M,) of every image in the class that its score is highest for, and these classes.

    scores (N, K), for example log-probabilities. A class that has fewer than ``least`` is given those
    others of which its own score is highest; such an image serves several classes. Ordered by class.

    Raises:
        ConfigError: there are fewer images than ``least``.
    """
    check_top(len(scores), least, "conditional_top")
    own = F.one_hot(scores.argmax(1), scores.shape[1]).bool()
    first = torch.where(own, math.inf, scores).argsort(dim=0, descending=True, stable=True)[:least]
    classes, rows = own.scatter(0, first, True).T.nonzero().unbind(1)
    return rows, classes


def check_top(images: int, top: int, setting: str) -> None:
    """Refuse to take the ``top`` of fewer images; ``setting`` is what asks for them.

    Raises:
        ConfigError: there are fewer.
    """
    if images < top:
        raise ConfigError(
            f"adaptation.{setting}: expected at most the {images} public images, found {top}; lower it, "
            "or give more public images"
        )
