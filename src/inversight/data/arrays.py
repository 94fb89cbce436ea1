"""Lists the images in arrays: ``.npz`` as of MedMNIST, and the IDX files of MNIST."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

from inversight.core.errors import DataError, one_line
from inversight.data.listing import (
    Item,
    Listing,
    Source,
    check_declared,
    class_order,
    numbered,
)

Values: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_PIECE = 4 << 20
"""Bytes of an array that are read at once."""
_IDX = re.compile(r"(?P<split>.+?)[-_.]images?[-.]idx[34]-ubyte(\.gz)?", re.IGNORECASE)
_NPZ = re.compile(r"(?:(?P<split>.+)_)?images")


@dataclass(frozen=True)
class Array:
    """An array in a file that is not read yet.

    where: how messages name it. shape: its rows first. open: opens a stream of its values in C order,
    which ends with them.
    """

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    open: Callable[[], Any]

    def pieces(self) -> Iterator[Values]:
        """Yield the rows, some at once.

        Raises:
            DataError: the file is damaged.
        """
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        at_once, left = max(1, _PIECE // max(size, 1)), self.shape[0]
        with _readable(self.where), self.open() as stream:
            while left:
                count = min(at_once, left)
                content = stream.read(count * size)
                if len(content) < count * size:
                    raise EOFError("it ends too early")
                yield np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])
                left -= count
            if stream.read(1):
                raise DataError(f"{self.where}: holds more than it declares; it is damaged")


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Turn what decoders of damaged files raise into one line."""
    try:
        yield
    except (
        OSError, EOFError, ValueError, zlib.error, struct.error, zipfile.BadZipFile,
        NotImplementedError, RuntimeError,
    ) as error:  # fmt: skip
        raise DataError(
            f"{where}: is damaged or of another kind ({one_line(error)}); write the file again"
        ) from None


def open_npz(file: Path, role: str) -> Source:
    """Open an archive of arrays ``[SPLIT_]images`` and ``[SPLIT_]labels``; nothing is unpickled.

    Raises:
        DataError: it has no images, holds pickled objects, or declares far more than it could hold.
    """
    where = f"{role} {file}"
    with _readable(where), zipfile.ZipFile(file) as archive:
        inside = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
        check_declared(where, sum(m.file_size for m in inside.values()), file.stat().st_size)
        names = {name: found for name in inside if (found := _NPZ.fullmatch(name))}
        arrays = {
            found["split"] or "images": (
                _npy(file, inside[name], f"{where}: {name}"),
                _npy(file, inside[labels], f"{where}: {labels}")
                if (labels := name.removesuffix("images") + "labels") in inside
                else None,
            )
            for name, found in names.items()
        }
    if not arrays:
        raise DataError(
            f"{where}: expected arrays train_images and train_labels, or images and labels, found "
            f"{', '.join(inside) or 'none'}"
        )
    return _source(file, [file], arrays)


def _npy(file: Path, member: zipfile.ZipInfo, where: str) -> Array:
    """Return an array of an archive, its header checked."""

    def begin() -> tuple[IO[bytes], tuple[int, ...], bool, np.dtype[Any]]:
        stream = zipfile.ZipFile(file).open(member)  # noqa: SIM115 (the caller closes it)
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version[0]}.{version[1]} of the npy format")
        read = np.lib.format.read_array_header_1_0
        shape, columns_first, dtype = (
            read if version == (1, 0) else np.lib.format.read_array_header_2_0
        )(stream)
        return stream, shape, columns_first, dtype

    with _readable(where):
        stream, shape, columns_first, dtype = begin()
        start = stream.tell()
        stream.close()
    if dtype.hasobject:
        raise DataError(f"{where}: holds pickled objects, which are not read; save plain numbers")
    if columns_first and len(shape) > 1:
        raise DataError(f"{where}: is in Fortran order; save numpy.ascontiguousarray of it")
    declared = math.prod(shape) * dtype.itemsize
    if start + declared != member.file_size:
        raise DataError(
            f"{where}: declares {declared:,} bytes and holds {member.file_size - start:,}; it is damaged"
        )
    return Array(where, shape, dtype, lambda: begin()[0])


def idx_files(folder: Path) -> list[Path]:
    """Return the IDX files of images that lie in a folder."""
    return sorted(p for p in folder.iterdir() if _IDX.fullmatch(p.name) and p.is_file())


def open_idx(path: Path, files: Sequence[Path], role: str) -> Source:
    """Open IDX files of images, each with the labels that lie beside it.

    Raises:
        DataError: a file is damaged, or declares far more than it could hold.
    """
    arrays = {}
    for file in files:
        found = _IDX.fullmatch(file.name)
        name = found["split"] if found else file.name
        head, mark, tail = file.name.rpartition("image")
        label = head + mark.replace("image", "label") + re.sub(r"idx[34]", "idx1", tail)
        beside = [file.with_name(label), file.with_name(label.removesuffix(".gz")),
                  file.with_name(label + ".gz")]  # fmt: skip
        labels = next((p for p in beside if mark and p.is_file()), None)
        arrays[name] = (_idx(file, role), None if labels is None else _idx(labels, role))
    return _source(path, files, arrays)


def _idx(file: Path, role: str) -> Array:
    """Return the array of one IDX file, its header checked."""
    where = f"{role} {file}"

    def begin() -> tuple[IO[bytes], tuple[int, ...]]:
        stream: Any = file.open("rb")
        if stream.read(2) == b"\x1f\x8b":
            stream.close()
            stream = gzip.open(file)  # noqa: SIM115 (the caller closes it)
        else:
            stream.seek(0)
        zero, kind, dimensions = struct.unpack(">HBB", stream.read(4))
        if zero or kind != 8 or not 1 <= dimensions <= 4:
            raise ValueError("expected an IDX file of unsigned bytes")
        return stream, struct.unpack(f">{dimensions}I", stream.read(4 * dimensions))

    with _readable(where):
        stream, shape = begin()
        stream.close()
        check_declared(where, math.prod(shape), file.stat().st_size)
    return Array(where, shape, np.dtype(np.uint8), lambda: begin()[0])


def _source(
    path: Path, files: Sequence[Path], arrays: Mapping[str, tuple[Array, Array | None]]
) -> Source:
    for images, labels in arrays.values():
        _layout(images)
        if labels is not None:
            _check_labels(labels, images.shape[0])
    ordered = dict(sorted(arrays.items()))
    counts = {name: images.shape[0] for name, (images, _) in ordered.items()}

    def listing(splits: Sequence[str]) -> Listing:
        chosen = {name: ordered[name] for name in splits or ordered}
        ids: list[str] = []
        labels: list[str | None] = []
        for name, (images, given) in chosen.items():
            ids += numbered(name, images.shape[0])
            labels += [None] * images.shape[0] if given is None else _names(given)
        shapes = {_layout(images) for images, _ in chosen.values()}
        first = next(iter(shapes))
        return Listing(
            path, ids, labels, class_order(y for y in labels if y is not None),
            lambda rows: _items([images for images, _ in chosen.values()], rows), files,
            pixels=(first[1], first[0], first[2] == 1) if len(shapes) == 1 else None,
        )  # fmt: skip

    return Source(path, counts, listing)


def _check_labels(labels: Array, count: int) -> None:
    """Check that there is one label for each image."""
    shape = labels.shape
    if len(shape) == 2 and shape[1] > 1:
        raise DataError(
            f"{labels.where}: has {shape[1]} labels an image; expected one, of shape (N,) or (N, 1): "
            "a classifier of several labels at once is not audited"
        )
    if shape not in ((count,), (count, 1)):
        raise DataError(f"{labels.where}: expected shape ({count},) or ({count}, 1), found {shape}")
    if labels.dtype.kind not in "uibU":
        raise DataError(
            f"{labels.where}: holds {labels.dtype}, expected whole numbers or names of classes"
        )


def _names(labels: Array) -> list[str]:
    return [str(value) for piece in labels.pieces() for value in piece.ravel().tolist()]


def _layout(images: Array) -> tuple[int, int, int]:
    """Return height, width and channels of the images of an array."""
    shape = images.shape
    if shape and shape[0] == 0:
        raise DataError(f"{images.where}: holds no images")
    if len(shape) == 3:
        found = (shape[1], shape[2], 1)
    elif len(shape) == 4 and shape[3] in (1, 3):
        found = shape[1:]
    elif len(shape) == 4 and shape[1] in (1, 3):
        found = (shape[2], shape[3], shape[1])
    else:
        raise DataError(
            f"{images.where}: expected images (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W), found "
            f"{shape}"
        )
    if not (images.dtype.kind in "bf" or images.dtype in (np.uint8, np.uint16)):
        raise DataError(
            f"{images.where}: holds {images.dtype}, whose black and white are not known; save uint8, "
            "uint16, or floats in [0, 1]"
        )
    return found


def _items(arrays: Sequence[Array], rows: Sequence[int]) -> Iterator[Item]:
    """Yield the images of rows of several arrays, one after another."""
    wanted, row = set(rows), 0
    for images in arrays:
        channels = _layout(images)[2]
        for piece in images.pieces():
            kept = [i for i in range(len(piece)) if row + i in wanted]
            row += len(piece)
            if not kept:
                continue
            pixels = _eight_bits(piece[kept], images)
            if pixels.ndim == 4 and pixels.shape[3] not in (1, 3):
                pixels = np.ascontiguousarray(np.moveaxis(pixels, 1, 3))
            yield from pixels.reshape(len(kept), *pixels.shape[1:3]) if channels == 1 else pixels


def _eight_bits(values: Values, images: Array) -> Values:
    """Scale values to 0..255 by the range of their type, floats from [0, 1]."""
    if values.dtype == np.uint8:
        return values
    highest = {"b": 1.0, "u": 65535.0, "f": 1.0}[values.dtype.kind]
    floats = values.astype(np.float64)
    if not ((floats >= 0) & (floats <= highest)).all():
        raise DataError(
            f"{images.where}: has values from {floats.min():g} to {floats.max():g}, expected 0 to "
            f"{highest:g}; save uint8"
        )
    return np.round(floats * (255.0 / highest)).astype(np.uint8)
