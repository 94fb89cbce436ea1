"""The one entry point to images: a folder or a file of any format that is read, and its splits."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from inversight.core.errors import DataError
from inversight.core.imaging import Size
from inversight.core.progress import Progress, silent
from inversight.data.arrays import idx_files, open_idx, open_npz
from inversight.data.folder import is_system, list_folder
from inversight.data.images import ImageSet
from inversight.data.listing import Source, check_labels
from inversight.data.manifest import open_csv, open_parquet_manifest
from inversight.data.parquet import image_column, open_parquet, parquet_schema
from inversight.data.reading import read_listing

_SPLITS = re.compile(r"(?P<path>.+):(?P<splits>[^:/\\]+)")
_LAYOUT = (
    "expected CLASS/IMAGE.png, one subfolder for each class, or a CSV, Parquet, npz or IDX file"
)


def load_images(
    path: Path, *, role: str, size: Size | None = None, channels: int | None = None,
    labelled: bool = True, limit: int | None = None, progress: Progress = silent,
    warn: Callable[[str], None] = warnings.warn, cache: Path | None = None,
) -> ImageSet:  # fmt: skip
    """Read images, rows sorted by id.

    The format is found by looking into the file: a folder with one subfolder for each class; a table CSV
    or Parquet with columns ``path``, ``label`` and, if given, ``group`` and ``split``; Parquet files with
    images inside, as of Hugging Face; ``.npz`` with ``[SPLIT_]images`` and ``[SPLIT_]labels``; IDX files
    of MNIST, also compressed. PATH:SPLIT or PATH:SPLIT+SPLIT reads one or more splits of a file
    (docs/images.md).

    Every image format that Pillow decodes itself is read. Transparency is laid on white, values are scaled
    to 8 bits by the range of the type, EXIF turns are applied, and of an animation the first frame counts.

    Args:
        path: the folder or file.
        role: how messages name it, such as "--private".
        size: see :data:`inversight.core.imaging.Size`; None: the images' own, which must be square and equal.
        channels: 1 or 3; None: 1 if every image is grey.
        labelled: False: images need no class.
        limit: number of classes to read, in order; None: all.
        progress: called as images are read.
        warn: called with one line that counts and names what is left out.
        cache: folder where many images (more than 256 MiB) are kept decoded, for a run that goes on; None: in
            a temporary file while they are in use. The tensor is mapped to the file.

    Raises:
        DataError: one line that names the folder, file or image.
        DiskFullError: there is no room for decoded images.
    """
    source, splits = open_source(path, role)
    if source is None:
        listing = list_folder(path, role, labelled=labelled, limit=limit)
        rows = list(range(len(listing.ids)))
    else:
        listing = source.read(splits)
        check_labels(listing.ids, listing.labels, f"{role} {path}", needed=labelled)
        kept = set(listing.classes[:limit])
        rows = [i for i, label in enumerate(listing.labels) if label is None or label in kept]
    classes = listing.classes[:limit]
    found = read_listing(
        replace(listing, classes=classes), rows, role=role, size=size, channels=channels,
        progress=progress, cache=cache,
    )  # fmt: skip
    for remark in listing.remarks:
        warn(remark)
    return found


def read_splits(path: Path, role: str) -> tuple[str, ...]:
    """Return the names of the splits inside a file, or of the subfolders of a folder.

    Raises:
        DataError: it cannot be read.
    """
    source = _open(path, role)
    if source is not None:
        return tuple(source.splits)
    return tuple(sorted(p.name for p in path.iterdir() if p.is_dir() and not is_system(p.name)))


def split_path(path: Path, splits: Sequence[str], role: str) -> Path:
    """Return how one or more splits of a file are named, or the subfolder of a folder.

    Raises:
        DataError: several subfolders.
    """
    if _open(path, role) is not None:
        return Path(f"{path}:{'+'.join(splits)}")
    if len(splits) > 1:
        raise DataError(f"{role} {path}: {' and '.join(splits)} are two folders; name one of them")
    return path / splits[0]


def read_column(path: Path, role: str, column: str) -> dict[str, str] | None:
    """Return the values of a column of a table by the id of the image, None without such a column.

    Raises:
        DataError: the table cannot be read.
    """
    source, splits = open_source(path, role)
    return None if source is None else source.column(column, splits)


def open_source(path: Path, role: str) -> tuple[Source | None, tuple[str, ...]]:
    """Open a file and return it with the splits that PATH:SPLIT names; None for a folder of images.

    Raises:
        DataError: it cannot be read, or has several splits of which none is named.
    """
    wanted: tuple[str, ...] = ()
    named = None if path.exists() else _SPLITS.fullmatch(str(path))
    if named is not None and Path(named["path"]).exists():
        path, wanted = Path(named["path"]), tuple(dict.fromkeys(named["splits"].split("+")))
    source = _open(path, role)
    if source is None and wanted:
        raise DataError(
            f"{role} {path}: is a folder of images, which has no splits; name the folder"
        )
    if source is None:
        return None, ()
    has = ", ".join(f"{name} ({count} images)" for name, count in source.splits.items())
    unknown = next((name for name in wanted if name not in source.splits), None)
    if unknown is not None:
        raise DataError(f"{role} {path}: has no split {unknown}; it has {has or 'none'}")
    if not wanted and len(source.splits) > 1:
        first = next(iter(source.splits))
        raise DataError(
            f"{role} {path}: has splits {has}; name the one that is meant, as in {path}:{first}"
        )
    return source, wanted


def _open(path: Path, role: str) -> Source | None:
    """Open a file or a folder of files by what is in it; None for a folder of images."""
    try:
        if path.is_dir():
            return _open_folder(path, role)
        if not path.exists():
            raise DataError(f"{role} {path}: no such folder or file; {_LAYOUT}")
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        where = error.filename or path
        raise DataError(f"{role} {where}: cannot be read ({error.strerror})") from None
    if start == b"PK\x03\x04":
        return open_npz(path, role)
    if start == b"PAR1":
        return _open_parquet(path, [path], role)
    if path.suffix.lower() in (".csv", ".txt"):
        return open_csv(path, role)
    if start[:2] in (b"\0\0", b"\x1f\x8b"):
        return open_idx(path, [path], role)
    raise DataError(f"{role} {path}: is a file of another kind; {_LAYOUT}")


def _open_folder(path: Path, role: str) -> Source | None:
    """Open a folder of Parquet or IDX files."""
    if idx := idx_files(path):
        return open_idx(path, idx, role)
    folders = [p.name for p in path.iterdir() if p.is_dir() and not is_system(p.name)]
    for folder in (path, path / "data"):
        tables = sorted(folder.glob("*.parquet"))
        if tables and folders in ([], ["data"]):
            return _open_parquet(path, tables, role)
    return None


def _open_parquet(path: Path, files: list[Path], role: str) -> Source:
    schema = parquet_schema(files[0], f"{role} {files[0]}")
    image = image_column(schema)
    if image is not None:
        return open_parquet(path, files, role, image)
    if len(files) > 1 or "path" not in schema.names:
        raise DataError(
            f"{role} {files[0]}: has no column of images (bytes) and none called path; its columns are "
            f"{', '.join(schema.names)}"
        )
    return open_parquet_manifest(files[0], role)
