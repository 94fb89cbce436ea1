"""Class labels that the target predicts for public images."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.core.errors import ConfigError
from inversight.models.target import Target


@torch.no_grad()
def soft_labels(target: Target, public: Tensor, *, batch_size: int = 64) -> Tensor:
    """Return the target's log-probabilities (N, K) of public images, uint8 (N, C, S, S); on the CPU."""
    parts = [
        target(images.to(target.device).float() / 255.0).log_softmax(1).cpu()
        for images in public.split(batch_size)
    ]
    return torch.cat(parts)


def pseudo_labels(
    scores: Tensor, top: int, *, setting: str = "pseudo_labels_top"
) -> tuple[Tensor, Tensor]:
    """Select the ``top`` images with the highest score of each class (top-n selection of PLG-MI).

    An image may be selected for several classes (Yuan et al. 2023).

    Args:
        scores: (N, K), for example log-probabilities.
        top: number of images per class.
        setting: name of the setting ``top`` comes from, for the error message.

    Returns:
        Rows (K top,) and their classes (K top,), class by class in descending order of scores; of equal
        scores the first row comes first.

    Raises:
        ConfigError: there are fewer images than ``top``.
    """
    images, classes = scores.shape
    check_top(images, top, setting)
    order = scores.argsort(dim=0, descending=True, stable=True)[:top]
    return order.T.flatten(), torch.arange(classes).repeat_interleave(top)


def predicted_labels(scores: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Label every image with the class of its highest score.

    A class with fewer than ``least`` images also gets those others with its highest scores; they belong
    to several classes.

    Args:
        scores: (N, K), for example log-probabilities.
        least: smallest number of images of a class.

    Returns:
        Rows (M,) and their classes (M,), ordered by class.

    Raises:
        ConfigError: there are fewer images than ``least``.
    """
    check_top(len(scores), least, "conditional_top")
    own = F.one_hot(scores.argmax(1), scores.shape[1]).bool()
    first = torch.where(own, math.inf, scores).argsort(dim=0, descending=True, stable=True)[:least]
    classes, rows = own.scatter(0, first, True).T.nonzero().unbind(1)
    return rows, classes


def check_top(images: int, top: int, setting: str) -> None:
    """Validate that there are at least ``top`` public images.

    Raises:
        ConfigError: there are fewer; ``setting`` is the name of the setting that asks for them.
    """
    if images < top:
        raise ConfigError(
            f"adaptation.{setting}: expected at most the {images} public images, found {top}; lower it, "
            "or give more public images"
        )
