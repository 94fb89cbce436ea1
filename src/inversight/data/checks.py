"""Checks of image sets: their size, their classes, and images that two of them share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from inversight.core.errors import DataError
from inversight.data.images import ImageSet

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
"""Image sizes that the style-based prior supports."""


def working_size(native: int, cap: int) -> int:
    """Return the largest size of SIZES that is at most ``native`` and ``cap``.

    Raises:
        DataError: both are below 8.
    """
    fitting = [s for s in SIZES if s <= min(native, cap)]
    if not fitting:
        raise DataError(
            f"images of {native}x{native}: the smallest size that works is 8; give --size 8 or more"
        )
    return fitting[-1]


def check_size(size: int, *, given: bool) -> None:
    """Refuse an image size that the prior does not support, unless it was ``given`` by ``--size``.

    Raises:
        DataError: naming the sizes that work.
    """
    if not given and size not in SIZES:
        near = [s for s in SIZES if s <= max(size, 8)][-1]
        raise DataError(
            f"images are {size}x{size}; the prior works at {', '.join(map(str, SIZES))}: give "
            f"--size {near} to resize them, or the target's own input size"
        )


def check_overlap(a: ImageSet, b: ImageSet, names: tuple[str, str], *, allow: bool) -> int:
    """Return the number of images that both sets hold, by content.

    Raises:
        DataError: there are some and ``allow`` is False.
    """
    first = dict(zip(reversed(a.hashes), reversed(a.ids), strict=True))
    shared = [(d, name) for d, name in zip(b.hashes, b.ids, strict=True) if d in first]
    if shared and not allow:
        digest, name = shared[0]
        raise DataError(
            f"{names[0]} and {names[1]} share {len(shared)} image(s), first {first[digest]} = "
            f"{name}: the result would mean nothing; remove them from one side, or give "
            "--allow-overlap to go on all the same"
        )
    return len(shared)


def check_holdout_classes(
    holdout: ImageSet, classes: Sequence[str], role: str, *, needed: Iterable[str] | None = None
) -> None:
    """Check that a holdout has classes of private only, and images of each of the ``needed`` classes.

    All classes are needed by default; the holdout could say nothing about one that it lacks.

    Raises:
        DataError: naming the first such classes.
    """
    foreign = next((c for c in holdout.classes if c not in classes), None)
    if foreign is not None:
        raise DataError(
            f"{role}: class {foreign} is not in --private; the holdout holds other images of the "
            "same classes"
        )
    missing = sorted(set(classes if needed is None else needed) - set(holdout.classes))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"{role}: has no images of class {', '.join(missing[:3])}{more}; add some that the target "
            "never saw, or go on without a holdout and without flags"
        )
