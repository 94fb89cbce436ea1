"""Units: images that depend on each other, such as near-copies, and count as one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.data import ImageSet
from inversight.risk.design import Units, in_order, make_units
from inversight.risk.twins import find_twins


def units_of(
    private: ImageSet, holdout: ImageSet | None = None, *, progress: Progress = silent
) -> Units:
    """Return the units of the N images of ``private`` followed by ``holdout``, in their row order.

    A unit is a group (``ImageSet.groups``; groups of one name in both sets are one) or near-duplicates
    (:func:`inversight.risk.twins.find_twins` on both sets together), joined where they overlap. Where
    each class is one group, as a person in face recognition, units are near-duplicates alone. Sets whose
    rows come in another order get the same units with other numbers.

    Raises:
        ConfigError: a group has images of two classes.
    """
    sets = [private] if holdout is None else [private, holdout]
    channels = max(one.channels for one in sets)
    groups = [group for one in sets for group in one.groups or (None,) * len(one)]
    sets = [one.resized(size=private.size, channels=channels) for one in sets]
    together = replace(
        private,
        images=torch.cat([one.images for one in sets]),
        labels=torch.cat([one.labels for one in sets]),
        ids=tuple(f"{number}/{name}" for number, one in enumerate(sets) for name in one.ids),
        hashes=tuple(value for one in sets for value in one.hashes),
        groups=None,
    )
    twins = find_twins(together, progress=progress)
    return make_units(together.labels, groups, twins.group, classes=private.classes)


def unit_numbers(units: Tensor, labels: Tensor, role: str) -> Tensor:
    """Return units (N,) int64 numbered from 0 in order of their first image.

    Raises:
        InputError: not one integer for each label, or a unit with images of two classes.
    """
    if units.shape != labels.shape or units.is_floating_point():
        raise InputError(
            f"{role} units: expected {len(labels)} integers, one for each image, found shape "
            f"{tuple(units.shape)} and type {units.dtype}"
        )
    unit = torch.from_numpy(in_order(units.cpu().numpy()))
    of_unit = labels.new_zeros(int(unit.max()) + 1 if len(unit) else 0)
    of_unit[unit] = labels
    if not torch.equal(of_unit[unit], labels):
        row = int((of_unit[unit] != labels).nonzero()[0])
        raise InputError(
            f"{role} units: expected the images of a unit to be of one class, found classes "
            f"{int(labels[row])} and {int(of_unit[unit[row]])} in unit {int(units[row])}"
        )
    return unit
