"""What scores demand of their input, each broken demand told in one line."""

from __future__ import annotations

from collections import Counter

import torch

from inversight.embeddings.base import Features
from inversight.errors import InputError


def check_features(features: Features, role: str) -> None:
    """Refuse features that no score can read; ``role`` names them in the message.

    Raises:
        InputError: no image, lengths that differ, an id twice, or a NaN or infinity.
    """
    rows = len(features.ids)
    if rows == 0:
        raise InputError(f"{role}: expected at least one image, found none")
    if features.labels.shape != (rows,) or features.labels.is_floating_point():
        raise InputError(
            f"{role}: expected one integer label for each of {rows} ids, found labels of shape "
            f"{tuple(features.labels.shape)} and type {features.labels.dtype}"
        )
    name, count = Counter(features.ids).most_common(1)[0]
    if count > 1:
        raise InputError(f"{role}: expected distinct ids, found {name} {count} times; rename them")
    if not features.blocks:
        raise InputError(f"{role}: expected at least one block of features, found none")
    for number, block in enumerate(features.blocks):
        if block.ndim != 2 or len(block) != rows:
            raise InputError(
                f"{role}: expected feature block {number} of shape ({rows}, D), "
                f"found {tuple(block.shape)}"
            )
        # A sum is not finite exactly if a term is not: float64 cannot overflow on float32 terms.
        if not bool(block.sum(dtype=torch.float64).isfinite()):
            row = int((~block.isfinite()).any(1).nonzero()[0])
            raise InputError(
                f"{role}: expected finite features, found NaN or infinity for "
                f"{features.ids[row]}; check that image and the embedding"
            )


def check_pair(private: Features, reconstructions: Features, *, by_class: bool = True) -> None:
    """Refuse two sets that cannot be compared, class by class if ``by_class``.

    Raises:
        InputError: as :func:`check_features`; blocks that differ in number or width; a
            reconstruction of a class that private does not have.
    """
    check_features(private, "private")
    check_features(reconstructions, "reconstructions")
    expected = [block.shape[1] for block in private.blocks]
    found = [block.shape[1] for block in reconstructions.blocks]
    if expected != found:
        raise InputError(
            f"reconstructions: expected feature blocks {expected} wide, as private has, "
            f"found {found}; embed both with the same embedding"
        )
    if not by_class:
        return
    unknown = ~torch.isin(reconstructions.labels.cpu(), private.labels.cpu())
    if bool(unknown.any()):
        row = int(unknown.nonzero()[0])
        raise InputError(
            f"reconstructions: expected classes that private has, found class "
            f"{int(reconstructions.labels[row])} for {reconstructions.ids[row]}; "
            "remove it or add private images of that class"
        )
