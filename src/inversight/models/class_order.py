"""Whether a target's classes are in another order than its outputs, found by trying usual orders."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from inversight.data import ImageSet
from inversight.models.target import Target

LOW_ACCURACY = 0.7
"""Accuracy on private images below which a target is probably called wrongly."""


def natural_order(names: Sequence[str]) -> tuple[str, ...]:
    """Return names sorted with numbers by value: 1, 2, 10."""

    def key(name: str) -> list[tuple[int, int, str]]:
        parts = re.split(r"([0-9]+)", name)
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]

    return tuple(sorted(names, key=key))


def usual_orders(target: Target) -> dict[str, tuple[str, ...]]:
    """Return orders of the target's classes by what they are called; none is its own."""
    names = target.classes
    orders = {
        "alphabetical order": tuple(sorted(names)),
        "natural order (1, 2, 10)": natural_order(names),
        "case-insensitive order": tuple(sorted(names, key=str.casefold)),
        "the order in its own file (id2label)": target.label_names,
    }
    found: dict[str, tuple[str, ...]] = {}
    for called, order in orders.items():
        if order != names and set(order) == set(names) and order not in found.values():
            found[called] = order
    return found


@torch.no_grad()
def accuracy_by_order(target: Target, images: ImageSet, batch_size: int = 64) -> dict[str, float]:
    """Return the accuracy on ``images`` that the target would have in each of the usual orders."""
    parts = torch.arange(len(images)).split(batch_size)
    outputs = [
        target(images.select(p).floats().to(target.device)).argmax(1).tolist() for p in parts
    ]
    names = [images.classes[label] for label in images.labels.tolist()]
    predicted = [output for part in outputs for output in part]
    return {
        called: sum(order[i] == name for i, name in zip(predicted, names, strict=True)) / len(names)
        for called, order in usual_orders(target).items()
    }


def accuracy_line(accuracy: float) -> str:
    """Return a sentence on a target's accuracy on the private images."""
    return f"The target puts {accuracy:.1%} of the private images in their class."


def low_accuracy(target: Target, images: ImageSet, accuracy: float) -> str:
    """Return a warning of a low accuracy on private images, which says what other orders would give."""
    tried = accuracy_by_order(target, images)
    causes = "class order (--classes), normalisation (--mean / --std), input size (--size)"
    orders = ""
    if tried:
        best = max(tried, key=tried.__getitem__)
        orders = "; with its classes in " + ", in ".join(f"{k} {v:.0%}" for k, v in tried.items())
        if tried[best] >= LOW_ACCURACY:
            causes = f"class order: give {best} with --classes FILE"
    return (
        f"the target puts only {accuracy:.0%} of the private images in their class{orders}; usual "
        f"causes: {causes}. An audit of a model that is called wrongly means nothing"
    )
