"""The design of an exposure experiment: which images each shadow model is trained on.

Models come in pairs that are trained on complementary halves of private and holdout images together, so
that every image is in exactly one model of each pair. What is drawn are *units*: an image, near-duplicates
(twins) or all images of a group. Halves are stratified by class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from inversight.core.errors import ConfigError, DesignError, InputError
from inversight.core.seeding import derive_seed

LEAST_UNITS = 4
"""Units below which a class is reported and its images are never flagged. Halves tie an image to its
classmates: in a class of two, being trained on one is not being trained on the other."""

Groups = Sequence[str | None] | Tensor
"""The group of each of N images: names, None for an image in no group, or (N,) int64, -1 for none."""


@dataclass(frozen=True)
class Units:
    """What is drawn together, for N images.

    unit: (N,) int64, numbered from 0 in order of the first image. group: (N,) int64, the group of each
    image, numbered in the same way, -1 for none. names: by number of the group. by_image: each class is one
    group (a person is a class), so that groups cannot be drawn whole and units are images and twins.
    """

    unit: Tensor
    group: Tensor
    names: tuple[str, ...]
    by_image: bool


def make_units(
    labels: Tensor,
    groups: Groups | None = None,
    twins: Tensor | None = None,
    *,
    classes: Sequence[str] | None = None,
) -> Units:
    """Return the units of N images: groups, joined where they hold twins of each other.

    Twins of different classes (one picture with two labels) stay two units, since halves are drawn within
    classes.

    Args:
        labels: (N,) integers.
        groups: see :data:`Groups`.
        twins: (N,) int64 of :class:`inversight.risk.twins.Twins`: equal numbers are near-duplicates, -1
            for an image without any.
        classes: names by label, for messages.

    Raises:
        ConfigError: a group has images of two classes.
        InputError: lengths that differ.
    """
    label = as_labels(labels)
    group, names = _numbered(groups, len(label))
    twin = np.full(len(label), -1) if twins is None else twins.cpu().numpy()
    if len(twin) != len(label):
        raise InputError(f"twins: expected {len(label)} numbers, one an image, found {len(twin)}")
    for number in range(group.max(initial=-1) + 1):
        of = np.unique(label[group == number])
        if len(of) > 1:
            shown = [repr(classes[c]) if classes else str(c) for c in of[:2].tolist()]
            raise ConfigError(
                f"groups: expected the images of a group to be of one class, found group "
                f"{names[number]!r} in classes {shown[0]} and {shown[1]}; name it differently in each"
            )
    grouped = group >= 0
    by_image = bool(grouped.any()) and all(
        len(np.unique(group[label == c])) == 1 and bool(grouped[label == c].all())
        for c in np.unique(label)
    )
    edges = [] if by_image else [_edges(group)]
    # Twins within classes: a number for each twin and class.
    span = int(twin.max(initial=0)) + 1
    edges.append(
        _edges(np.where(twin >= 0, np.unique(label, return_inverse=True)[1] * span + twin, -1))
    )
    i, j = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(len(i), dtype=bool), (i, j)), shape=(len(label), len(label)))
    unit = in_order(connected_components(graph, directed=False)[1])
    return Units(torch.from_numpy(unit), torch.from_numpy(group), tuple(names), by_image)


class StratifiedHalves:
    """Random halves of units, as equal as can be in each class and over all classes.

    A class of n units gives n // 2 or n - n // 2 to a half; which half gets the odd unit is random, and
    the totals of the two halves differ by at most one unit. All such halves are equally likely.

    unit: (N,) int64, the unit of each image, numbered in order of the first image. strata: the units of
    each class, in the order of labels.
    """

    def __init__(self, labels: Tensor, units: Tensor | None = None) -> None:
        """Prepare halves of N images with ``labels`` (N,); ``units`` as :func:`draw_design` takes them.

        Raises:
            InputError: lengths that differ, a unit with images of two classes.
            DesignError: no class has two units.
        """
        label = as_labels(labels)
        given = np.arange(len(label)) if units is None else units.cpu().numpy()
        if given.shape != label.shape:
            raise InputError(
                f"units: expected {len(label)} numbers, one an image, found shape {given.shape}"
            )
        self.unit: NDArray[np.int64] = in_order(given)
        count = self.unit.max(initial=-1) + 1
        first = np.zeros(count, dtype=np.int64)
        first[self.unit[::-1]] = np.arange(len(label))[::-1]
        of_unit = label[first]
        if (of_unit[self.unit] != label).any():
            row = int((of_unit[self.unit] != label).argmax())
            raise InputError(
                f"units: expected the images of a unit to be of one class, found images of classes "
                f"{of_unit[self.unit[row]]} and {label[row]} in unit {given[row]}"
            )
        self.strata = [np.flatnonzero(of_unit == c) for c in np.unique(of_unit)]
        if max((len(rows) for rows in self.strata), default=0) < 2:
            raise DesignError(
                "shadow models need a class with at least two units (images that are not near-copies, or "
                f"groups), found {count} units in {len(self.strata)} classes; add images"
            )

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.bool_]:
        """Return (count, U): the units of the first half, ``count`` times independently."""
        out = np.empty((count, self.unit.max() + 1), dtype=bool)
        odd = [rows for rows in self.strata if len(rows) % 2]
        more = _half(rng, count, len(odd))
        for rows in self.strata:
            out[:, rows] = _half(rng, count, len(rows))
        for column, rows in enumerate(odd):
            # The half with the odd unit is the one that ``more`` says.
            larger = out[:, rows].sum(1) > len(rows) // 2
            out[:, rows] ^= (larger != more[:, column])[:, None]
        return out


def draw_design(
    labels: Tensor, units: Tensor | None = None, *, pairs: int, seed: int, first: int = 0
) -> Tensor:
    """Return (2 * pairs, N) bool: rows 2j and 2j + 1 are complementary halves, pair ``first + j``.

    A pair depends on ``(seed, first + j)``, labels and units alone: 16 pairs are the first 16 of 32. See
    :class:`StratifiedHalves` for what is drawn.

    Args:
        labels: (N,) integers.
        units: (N,) integers: images with equal numbers are in the same half. None: each image alone. See
            :func:`make_units`.

    Raises:
        InputError: lengths that differ, a unit with images of two classes.
        DesignError: no class has two units.
        ConfigError: ``pairs`` below 1 or ``first`` below 0.
    """
    if pairs < 1 or first < 0:
        raise ConfigError(f"design: expected pairs >= 1 and first >= 0, found {pairs} and {first}")
    halves = StratifiedHalves(labels, units)
    rows = []
    for pair in range(first, first + pairs):
        rng = np.random.default_rng(derive_seed(seed, "design", pair))
        half = halves.draw(rng, 1)[0, halves.unit]
        rows += [half, ~half]
    return torch.from_numpy(np.stack(rows))


def as_labels(labels: Tensor) -> NDArray[np.int64]:
    """Return (N,) int64.

    Raises:
        InputError: not integers in one dimension, or none.
    """
    if labels.ndim != 1 or not len(labels) or labels.is_floating_point() or labels.is_complex():
        raise InputError(
            f"labels: expected integers (N,), N >= 1, found {labels.dtype} {tuple(labels.shape)}"
        )
    found: NDArray[np.int64] = labels.cpu().numpy().astype(np.int64)
    return found


def in_order(values: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return (N,) int64: equal values get equal numbers, from 0 in order of their first row."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[first.argsort()] = np.arange(len(first))
    return rank[inverse]


def _half(rng: np.random.Generator, count: int, n: int) -> NDArray[np.bool_]:
    """Return (count, n) bool with n / 2 True in each row; for odd n one more or one less, by chance."""
    even = n + n % 2
    if not n:
        return np.empty((count, 0), dtype=bool)
    keys = rng.random((count, even))
    middle = np.partition(keys, even // 2, axis=1)[:, even // 2, None]
    return np.asarray((keys < middle)[:, :n])


def _numbered(groups: Groups | None, n: int) -> tuple[NDArray[np.int64], list[str]]:
    """Return each image's group (N,), numbered by first image, -1 for none, and the groups' names."""
    if groups is None:
        return np.full(n, -1), []
    given = groups.tolist() if isinstance(groups, Tensor) else list(groups)
    if len(given) != n:
        raise InputError(f"groups: expected {n} groups, one an image, found {len(given)}")
    numbers: dict[str, int] = {}
    found = [
        -1 if name is None or name == -1 else numbers.setdefault(str(name), len(numbers))
        for name in given
    ]
    return np.array(found, dtype=np.int64), list(numbers)


def _edges(number: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (2, E): each row with a number >= 0, and the first row of that number."""
    rows = np.flatnonzero(number >= 0)
    _, first, inverse = np.unique(number[rows], return_index=True, return_inverse=True)
    return np.stack([rows[first][inverse], rows])
