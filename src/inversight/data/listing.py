"""Images of a source as they are found, before any is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from inversight.core.errors import DataError

Item: TypeAlias = "Path | bytes | np.ndarray[Any, np.dtype[np.uint8]]"
"""An image that is not decoded: its file, its bytes, or its pixels (H, W) or (H, W, 3)."""

_PLAUSIBLE = 64 << 20
"""Bytes that a compressed file may declare whatever its own size."""
_MOST_RATIO = 250
"""Declared size of a larger file, relative to its own. Deflate reaches 1,032 on zeros, images some 3 to 50."""


@dataclass(frozen=True)
class Listing:
    """N images of a source in the source's own order.

    ids: distinct names. labels: name of each one's class, None for all without classes. classes: in
    order. items: yields the items of the given rows, which ascend. pixels: width, height and whether
    they are grey, where that is the same for all and known. remarks: what a warning says.
    """

    source: Path
    ids: Sequence[str]
    labels: Sequence[str | None]
    classes: Sequence[str]
    items: Callable[[Sequence[int]], Iterator[Item]]
    files: Sequence[Path]
    pixels: tuple[int, int, bool] | None = None
    remarks: tuple[str, ...] = ()

    def name(self, row: int, item: Item) -> str:
        """Return how messages name an image."""
        return str(item) if isinstance(item, Path) else f"{self.source} {self.ids[row]}"


@dataclass(frozen=True)
class Source:
    """A file or folder of images, opened.

    splits: number of images by split, in order; empty where it has no such thing. read: lists the images
    of the given splits, of all for none. column: the values of a column by id, None without that column.
    """

    path: Path
    splits: Mapping[str, int]
    read: Callable[[Sequence[str]], Listing]
    column: Callable[[str, Sequence[str]], dict[str, str] | None] = field(default=lambda *_: None)


def class_order(labels: Iterable[str]) -> list[str]:
    """Return the distinct labels in order: whole numbers by value, other names as Python sorts them."""
    found = set(labels)
    try:
        numbers = {name: int(name) for name in found}
    except ValueError:
        return sorted(found)
    plain = all(str(number) == name for name, number in numbers.items())
    return sorted(found, key=numbers.__getitem__) if plain else sorted(found)


def check_labels(
    ids: Sequence[str], labels: Sequence[str | None], where: str, *, needed: bool
) -> None:
    """Check that every image has a label, or none does where they are not ``needed``.

    Raises:
        DataError: naming the first image without one.
    """
    without = [name for name, label in zip(ids, labels, strict=True) if label is None]
    if without and (needed or len(without) < len(ids)):
        raise DataError(
            f"{where}: {len(without)} of {len(ids)} image(s) have no label, first {without[0]}; give "
            "each its class, or remove them"
        )


def check_declared(where: str, declared: int, stored: int) -> None:
    """Refuse a compressed file that declares far more bytes than its own size could hold.

    Raises:
        DataError: naming both sizes.
    """
    if declared > max(_PLAUSIBLE, _MOST_RATIO * stored):
        raise DataError(
            f"{where}: declares {declared / 1e6:,.0f} MB in a file of {stored / 1e6:,.1f} MB, which "
            "could exhaust memory and disk; save the images without such compression, or remove it"
        )


def numbered(split: str, count: int) -> list[str]:
    """Return the ids of images inside a file, such as ``train/000012``, which sort as they are numbered."""
    width = max(6, len(str(count - 1)))
    return [f"{split}/{i:0{width}d}" for i in range(count)]
