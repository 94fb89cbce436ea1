"""Distances of shadow models as a randomised experiment: checks, centring, differences, redraws."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from inversight.core.errors import ConfigError, DesignError, InputError
from inversight.risk.calibration import benjamini_hochberg, check_rate
from inversight.risk.design import (
    LEAST_UNITS,
    Groups,
    StratifiedHalves,
    Units,
    as_labels,
    in_order,
    make_units,
)
from inversight.scores.checks import as_array

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
ArrayOf = Tensor | ArrayLike

LEAST_MODELS = 4
"""Shadow models below which there is no exposure."""

LEAST_TO_FLAG = 8
"""Shadow models below which no image is flagged."""

_SCRATCH = 1 << 21
"""Numbers held at once in each temporary."""


@dataclass(frozen=True)
class Experiment:
    """Checked input: K models, N images.

    values: (K, N), NaN where nothing is known. membership: (K, N). classes: (N,) int64, numbered by first
    image. units: what is drawn together. class_units: (N,), the number of units of each image's class.
    private: (N,).
    """

    values: Floats
    membership: Bools
    classes: NDArray[np.int64]
    units: Units
    class_units: NDArray[np.int64]
    private: Bools

    @property
    def large(self) -> Bools:
        """(N,): images of classes with enough units to be flagged."""
        return self.class_units >= LEAST_UNITS


def as_experiment(
    values: ArrayOf,
    membership: ArrayOf,
    labels: ArrayOf,
    groups: Groups | None = None,
    twins: Tensor | None = None,
    private: ArrayOf | None = None,
    *,
    name: str = "log_distances",
) -> Experiment:
    """Return checked input.

    Raises:
        InputError: shapes that differ, infinite values, groups or twins of other lengths.
        DesignError: fewer than four models, or no class of two units.
        ConfigError: a group has images of two classes.
    """
    array = _array(values, name)
    if array.ndim != 2:
        raise InputError(f"{name}: expected (models, images), found shape {tuple(array.shape)}")
    if len(array) < LEAST_MODELS:
        raise DesignError(
            f"shadow models: expected at least {LEAST_MODELS}, found {len(array)}; train more"
        )
    numbers = array.astype(np.float64)
    if np.isinf(numbers).any():
        raise InputError(
            f"{name}: expected finite numbers, NaN where there is none, found infinity"
        )
    member = _array(membership, "membership")
    if member.shape != array.shape or not np.isin(member, (0, 1)).all():
        raise InputError(
            f"membership: expected true or false of shape {array.shape} like {name}, found "
            f"{member.dtype} {member.shape}"
        )
    images = array.shape[1]
    label = as_array(labels, "labels")
    if label.shape != (images,):
        raise InputError(f"labels: expected {images}, one an image, found {tuple(label.shape)}")
    chosen = np.ones(images, bool) if private is None else _array(private, "private")
    if chosen.shape != (images,) or not np.isin(chosen, (0, 1)).all():
        raise InputError(f"private: expected {images} times true or false, one an image")
    units = make_units(label, groups, twins)
    classes = in_order(as_labels(label))
    unit = units.unit.numpy()
    count = np.zeros(classes.max() + 1, dtype=np.int64)
    np.add.at(count, classes[np.unique(unit, return_index=True)[1]], 1)
    if count.max() < 2:
        raise DesignError(
            "exposure needs a class with at least two units (images that are not near-copies, or groups), "
            f"found {len(unit)} images in {len(count)} classes; add images"
        )
    return Experiment(
        numbers, member.astype(bool), classes, units, count[classes], chosen.astype(bool)
    )


def check_complementary(member: Bools) -> None:
    """Validate that rows 2j and 2j + 1 of membership (K, N) are complementary.

    Raises:
        DesignError: they are not, or K is odd.
    """
    if len(member) % 2:
        raise DesignError(
            f"shadow models: expected an even number, two a pair, found {len(member)}; train one more"
        )
    wrong = (member[0::2] == member[1::2]).any(1)
    if wrong.any():
        raise DesignError(
            f"membership: expected rows 2j and 2j + 1 to be complementary halves, found images in both "
            f"or neither of pair {int(wrong.argmax())}; use unpaired_exposure for other designs"
        )


def check_halves(experiment: Experiment) -> None:
    """Validate that rows 2j and 2j + 1 of membership are a pair of halves as :func:`draw_design` draws.

    Raises:
        DesignError: see :func:`check_complementary`; halves that divide a unit, or classes unequally.
    """
    member, unit = experiment.membership, experiment.units.unit.numpy()
    check_complementary(member)
    first = np.unique(unit, return_index=True)[1]
    halves = member[0::2]
    divided = (halves != halves[:, first][:, unit]).any(1)
    if divided.any():
        raise DesignError(
            "membership: expected twins and groups to be in one half, found one divided in pair "
            f"{int(divided.argmax())}; give the groups and twins that the halves were drawn with"
        )
    # Twice the units in the half less all units of the class.
    excess = np.zeros((len(halves), experiment.classes.max() + 1), dtype=np.int64)
    np.add.at(excess.T, experiment.classes[first], np.where(halves[:, first], 1, -1).T)
    unequal = (abs(excess) > 1).any(1) | (abs(excess.sum(1)) > 1)
    if unequal.any():
        raise DesignError(
            f"membership: expected each class in equal halves, found others in pair "
            f"{int(unequal.argmax())}; use draw_design, or unpaired_exposure for other designs"
        )


def centre(experiment: Experiment) -> Floats:
    """Return values (K, N) less the mean of the model over all images of the class that have one.

    This takes away what a model's reconstructions of a class have in common. Classes of one unit are NaN:
    they have nothing to be compared with.
    """
    out = np.full_like(experiment.values, np.nan)
    order = experiment.classes.argsort(kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(experiment.classes[order])) + 1):
        if experiment.class_units[rows[0]] > 1:
            part = experiment.values[:, rows]
            out[:, rows] = part - nanmean(part, 1)[:, None]
    return out


def nanmean(values: Floats, axis: int) -> Floats:
    """Return means over what is not NaN; NaN where nothing is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=axis))


def redraw_sums(
    halves: StratifiedHalves,
    total: Floats,
    parts: Floats | None,
    part_of: NDArray[np.int64],
    *,
    redraws: int,
    seed: int,
) -> tuple[Floats, Floats]:
    """Return sums of sign times weight over P pairs and U units, for each redraw of all pairs.

    The sign is -1 for units in the first half of a redrawn pair, else +1. Memory is bounded apart from the
    results.

    Args:
        total: (P, U) weights of the first result, (redraws,).
        parts: (P, U) weights of the second, (redraws, G): sums within the parts that ``part_of`` (U,)
            numbers from 0 to G - 1. None: (redraws, 0).
    """
    rng = np.random.default_rng(seed)
    order = part_of.argsort(kind="stable")
    starts = np.flatnonzero(np.diff(part_of[order], prepend=-1))
    sums = np.zeros(redraws)
    by_part = np.zeros((redraws, 0 if parts is None else len(starts)))
    step = max(1, _SCRATCH // total.shape[1])
    for start in range(0, redraws, step):
        rows = slice(start, min(start + step, redraws))
        for pair in range(len(total)):
            sign = 1.0 - 2.0 * halves.draw(rng, rows.stop - start)
            sums[rows] += sign @ total[pair]
            if parts is not None:
                by_part[rows] += np.add.reduceat(sign[:, order] * parts[pair, order], starts, 1)
    return sums, by_part


def over_units(values: Floats, unit: NDArray[np.int64]) -> Floats:
    """Return (P, U): sums over the images of each unit of values (P, N), NaN as 0."""
    out = np.zeros((unit.max() + 1, len(values)))
    np.add.at(out, unit, np.nan_to_num(values).T)
    return np.ascontiguousarray(out.T)


def looks_factor(looks: int, further_looks: bool) -> int:
    """Return what p-values are multiplied by at look number ``looks``.

    Adding models after looking at a result and testing again raises false alarms. Look j spends
    1 / (j (j + 1)) of the error rate, which sums to 1 over all looks; a first look that is declared the
    only one spends all of it.

    Raises:
        ConfigError: ``looks`` below 1.
    """
    if looks < 1:
        raise ConfigError(f"looks: expected 1 for the first look, or more, found {looks}")
    return looks * (looks + 1) if looks > 1 or further_looks else 1


def check_options(fdr: float, redraws: int) -> None:
    """Validate a rate and a number of redraws.

    Raises:
        ConfigError: out of range.
    """
    check_rate(fdr)
    if redraws < 1:
        raise ConfigError(f"redraws: expected at least 1, such as 9999, found {redraws}")


def q_values(p: Floats, judged: Bools) -> Floats:
    """Return q-values (N,) among ``judged`` p-values (Benjamini and Hochberg 1995), NaN for the others."""
    out = np.full(p.shape, np.nan)
    out[judged] = benjamini_hochberg(torch.from_numpy(p[judged])).numpy()
    return out


def _array(given: ArrayOf, name: str) -> NDArray[np.generic]:
    found: NDArray[np.generic] = as_array(given, name).cpu().numpy()
    return found
