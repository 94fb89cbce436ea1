"""Units: images that depend on each other, such as near-copies, and count as one."""

from __future__ import annotations

import torch
from torch import Tensor

from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.data import ImageSet, join_images
from inversight.risk.design import Units, in_order, make_units
from inversight.risk.twins import Twins, find_twins


def units_of(
    private: ImageSet, holdout: ImageSet | None = None, *, twins: Twins | None = None,
    progress: Progress = silent,
) -> Units:  # fmt: skip
    """Return the units of the N private images by id, followed by the holdout images by id.

    A unit is a group (``ImageSet.groups``; a name in both sets is one group) or near-duplicates
    (:func:`inversight.risk.twins.find_twins` on both sets together), joined where they overlap. Where
    each class is one group, as a person in face recognition, units are near-duplicates alone.

    Args:
        private: images.
        holdout: images of the same size, number of channels and classes.
        twins: near-duplicates of both sets together (:func:`inversight.data.join_images`) that are known
            already; None: they are searched for.

    Raises:
        ConfigError: a group has images of two classes.
    """
    images = join_images(private, holdout)
    twins = twins or find_twins(images, progress=progress)
    return make_units(images.labels, images.groups, twins.group, classes=images.classes)


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
