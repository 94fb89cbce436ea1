"""Checks of the input of scores; each error is one line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from inversight.core.errors import InputError, one_line
from inversight.embeddings.base import Features

FeaturesLike = Features | tuple[Tensor | ArrayLike, Tensor | ArrayLike]
"""Features, or (values (N, ...), labels (N,)) as tensors, NumPy arrays or lists."""


VectorsLike = FeaturesLike | Tensor | NDArray[Any] | list[Any]
"""Features with labels or, where labels do not matter, values (N, ...) alone."""


def is_unlabelled(given: object) -> TypeGuard[Tensor | NDArray[Any] | list[Any]]:
    """Return whether ``given`` is values (N, ...) alone."""
    return isinstance(given, (Tensor, np.ndarray, list))


def as_features(given: VectorsLike, role: str, *, unlabelled: bool = False) -> Features:
    """Return ``given`` as features; rows of plain arrays are named ROLE-0, ROLE-1, ... in their order.

    ``unlabelled``: values without labels are allowed, and are of class 0.

    Raises:
        InputError: not a pair of arrays, no numbers, or labels that are not integers.
    """
    if isinstance(given, Features):
        return given
    if unlabelled and is_unlabelled(given):
        given = (given, torch.zeros(len(given), dtype=torch.int64))
    if not isinstance(given, tuple) or len(given) != 2:
        raise InputError(
            f"{role}: expected Features or a pair (values, labels), found {type(given).__name__}"
        )
    values = as_vectors(given[0], role)
    width = len(str(max(0, len(values) - 1)))
    ids = tuple(f"{role}-{i:0{width}d}" for i in range(len(values)))
    return Features((values,), as_labels(given[1], len(values), role), ids)


def as_pair(
    private: VectorsLike, reconstructions: VectorsLike, *, by_class: bool = True,
    unlabelled: bool = False,
) -> tuple[Features, Features]:  # fmt: skip
    """Return both sides as features that can be compared.

    ``unlabelled``: values without labels are allowed if neither side has any. They always are if not
    ``by_class``.

    Raises:
        InputError: see :func:`as_features` and :func:`check_pair`.
    """
    if by_class and unlabelled and is_unlabelled(private) is not is_unlabelled(reconstructions):
        raise InputError("expected labels on both sides or on neither, found them on one")
    real, made = (
        as_features(one, role, unlabelled=unlabelled or not by_class)
        for one, role in ((private, "private"), (reconstructions, "reconstructions"))
    )
    check_pair(real, made, by_class=by_class)
    return real, made


def as_vectors(given: object, role: str) -> Tensor:
    """Return an array (N, ...) of finite numbers as float32 (N, D).

    Raises:
        InputError: no such array.
    """
    values = as_array(given, f"{role} values")
    if values.ndim == 0 or values.is_complex() or values.dtype == torch.bool:
        raise InputError(
            f"{role} values: expected numbers of shape (N, ...), found shape "
            f"{tuple(values.shape)} and type {values.dtype}"
        )
    values = values.float().reshape(len(values), math.prod(values.shape[1:]))
    if not bool((finite := values.isfinite().all(1)).all()):
        row = int((~finite).nonzero()[0])
        raise InputError(f"{role}: expected finite features, found NaN or infinity in row {row}")
    return values


def as_labels(given: object, rows: int, role: str) -> Tensor:
    """Return one integer label for each of ``rows`` images, (rows,) int64.

    Raises:
        InputError: another shape, or no integers.
    """
    labels = as_array(given, f"{role} labels")
    if labels.shape != (rows,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(
            f"{role} labels: expected {rows} integers, one for each image, found shape "
            f"{tuple(labels.shape)} and type {labels.dtype}"
        )
    return labels.long()


def as_array(value: object, role: str) -> Tensor:
    """Return a tensor from a tensor, a NumPy array or nested lists.

    Raises:
        InputError: not an array of numbers.
    """
    if isinstance(value, Tensor):
        return value.detach()
    try:
        array = np.ascontiguousarray(value)
        # A pandas column may be read-only, which a tensor cannot be.
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError) as error:
        raise InputError(f"{role}: expected an array of numbers ({one_line(error)})") from None


def check_features(features: Features, role: str) -> None:
    """Check features that a score is to read; ``role`` names them in messages.

    Raises:
        InputError: no image, lengths that differ, an id twice, or a NaN or infinity.
    """
    rows = len(features.ids)
    if rows == 0:
        raise InputError(f"{role}: expected at least one image, found none")
    as_labels(features.labels, rows, role)
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
        # The sum is finite only if all terms are: float32 terms cannot overflow float64.
        if not bool(block.sum(dtype=torch.float64).isfinite()):
            row = int((~block.isfinite()).any(1).nonzero()[0])
            raise InputError(
                f"{role}: expected finite features, found NaN or infinity for "
                f"{features.ids[row]}; check that image and the embedding"
            )


def check_pair(
    private: Features, reconstructions: Features, *, by_class: bool = True, role: str = "private"
) -> None:
    """Check that two sets can be compared, class by class if ``by_class``.

    ``role`` is what messages call the first set.

    Raises:
        InputError: as :func:`check_features`; blocks that differ in number or width; a
            reconstruction of a class that private does not have.
    """
    check_features(private, role)
    check_features(reconstructions, "reconstructions")
    expected = [block.shape[1] for block in private.blocks]
    found = [block.shape[1] for block in reconstructions.blocks]
    if expected != found:
        raise InputError(
            f"reconstructions: expected feature blocks {expected} wide, as {role} has, "
            f"found {found}; embed both with the same embedding"
        )
    if by_class:
        check_classes(reconstructions.labels, reconstructions.ids, private.labels)


def check_classes(labels: Tensor, ids: Sequence[str], private: Tensor) -> None:
    """Check that reconstructions are of classes among the ``private`` labels.

    Raises:
        InputError: one is not.
    """
    unknown = ~torch.isin(labels.cpu(), private.cpu())
    if bool(unknown.any()):
        row = int(unknown.nonzero()[0])
        raise InputError(
            f"reconstructions: expected classes that private has, found class {int(labels[row])} for "
            f"{ids[row]}; remove it or add private images of that class"
        )
