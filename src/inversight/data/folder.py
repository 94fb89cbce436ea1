"""Reads a folder of images with one subfolder for each class."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from inversight.core.errors import DataError
from inversight.core.progress import Progress, silent
from inversight.data.decoding import decode, formats, is_grey, open_image, to_tensor
from inversight.data.images import ImageSet, pixel_hash

_NAMED = 3
"""Files that a warning names; it counts the others."""
_SYSTEM_NAMES = frozenset(
    {
        "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle",
        "$recycle.bin", "system volume information", "lost+found",
    }
)  # fmt: skip
"""Files and folders of macOS, Windows, Synology and Linux, in lower case."""


def load_folder(
    path: Path, *, role: str, size: int | None = None, channels: int | None = None,
    labelled: bool = True, limit: int | None = None, progress: Progress = silent,
    warn: Callable[[str], None] = warnings.warn,
) -> ImageSet:  # fmt: skip
    """Read a folder with one subfolder for each class, rows sorted by id.

    Every format that Pillow decodes itself is read. Sizes are checked from the files' headers before
    anything is decoded. Transparency is laid on white, values are scaled to 8 bits by the range of the
    file's type, EXIF turns are applied, and of an animation the first frame counts. Hidden files and
    those of operating systems (``__MACOSX``, ``Thumbs.db``) are skipped.

    Args:
        path: the folder.
        role: how messages name it, such as "--private".
        size: bring the shorter side to this many pixels and cut out the centre.
        channels: 1 or 3; None: 1 if every image is grey.
        labelled: False: class subfolders are optional; images lie in them or beside each other.
        limit: number of classes to read, in order; None: all.
        progress: called after each image.
        warn: called with one line that counts and names files that are left out.

    Raises:
        DataError: one line that names the folder or file.
    """
    classes, files, left_out = _list_files(path, role, labelled, limit)
    grey = _check_headers(files, role, size)
    wanted = channels or (1 if grey else 3)
    images, hashes = [], []
    for done, (file, _) in enumerate(files, start=1):
        pixels = decode(file, role)
        hashes.append(pixel_hash(pixels))
        images.append(to_tensor(pixels, size, wanted))
        progress(done, len(files), role)
    if left_out:
        warn(_left_out(left_out, path, role))
    position = {None: -1} | {name: i for i, name in enumerate(classes)}
    return ImageSet(
        images=torch.stack(images),
        labels=torch.tensor([position[name] for _, name in files]),
        ids=tuple(file.relative_to(path).as_posix() for file, _ in files),
        classes=tuple(classes),
        hashes=tuple(hashes),
    )


def _list_files(
    path: Path, role: str, labelled: bool, limit: int | None
) -> tuple[list[str], list[tuple[Path, str | None]], list[Path]]:
    """Return class names, images with their class sorted by id, and files that are left out."""
    layout = f"expected {path}/CLASS/IMAGE.png, one subfolder for each class"
    try:
        if not path.is_dir():
            what = "is a file" if path.exists() else "no such folder"
            raise DataError(f"{role} {path}: {what}; {layout}")
        entries = sorted(p for p in path.iterdir() if not _is_system(p.name))
        folders = [p for p in entries if p.is_dir()]
        loose, left_out = _images_of(p for p in entries if not p.is_dir())
        inside = {folder: _images_of(_files_below(folder)) for folder in folders[:limit]}
    except OSError as error:
        where = error.filename or path
        raise DataError(f"{role} {where}: cannot be read ({error.strerror})") from None
    if not entries:
        raise DataError(f"{role} {path}: is empty; {layout}")
    if labelled and not folders:
        raise DataError(f"{role} {path}: has no class subfolders; {layout}")
    if loose and any(images for images, _ in inside.values()):
        raise DataError(
            f"{role} {path}: {len(loose)} image(s) lie beside folders of images, first {loose[0]}; move "
            "each into the folder of its class, or remove it"
        )
    classes = [] if loose and not labelled else [folder.name for folder in inside]
    files: list[tuple[Path, str | None]] = [(file, None) for file in loose]
    for folder, (images, others) in inside.items():
        if classes and not images:
            raise DataError(
                f"{role} {folder}: holds no images{_kinds(others)}; add some or remove the folder"
            )
        files += [(file, folder.name) for file in images]
        left_out += others
    if not files:
        raise DataError(f"{role} {path}: holds no images{_kinds(left_out)}")
    for file, _ in files:
        try:
            str(file).encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"{role} {file!r}: file name is not UTF-8; rename it") from None
    files.sort(key=lambda row: row[0].relative_to(path).as_posix())
    return classes, files, left_out


def _is_system(name: str) -> bool:
    """Return whether a file or folder is hidden or an operating system's own."""
    return name.startswith(".") or name.casefold() in _SYSTEM_NAMES


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield files at any depth, and links to folders, which are not followed because they may form a loop."""

    def fail(error: OSError) -> None:
        raise error

    for here, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not _is_system(name)]
        links = [name for name in folders if Path(here, name).is_symlink()]
        yield from (Path(here, name) for name in files + links if not _is_system(name))


def _images_of(files: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Part files into images, by suffix, and others."""
    images: list[Path] = []
    others: list[Path] = []
    for file in files:
        known = file.suffix.lower() in formats() and file.is_file()
        (images if known else others).append(file)
    return images, others


def _kinds(files: Sequence[Path]) -> str:
    """Return how many files there are of each suffix, in brackets, or nothing."""
    counts = Counter(file.suffix.lower() or "without suffix" for file in files)
    text = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
    return f" (found {text})" if files else ""


def _left_out(files: Sequence[Path], path: Path, role: str) -> str:
    """Return a warning that counts and names files that are left out."""
    names = sorted(file.relative_to(path).as_posix() for file in files)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    text = (
        f"{role} {path}: {len(names)} file(s) left out, which are not images that can be "
        f"read{_kinds(files)}: {', '.join(names[:_NAMED])}{more}"
    )
    return text.encode("utf-8", "backslashreplace").decode()


def _check_headers(files: Sequence[tuple[Path, str | None]], role: str, size: int | None) -> bool:
    """Check declared sizes; True if every image is grey."""
    grey, sizes = True, {}
    for file, _ in files:
        with open_image(file, role) as image:
            grey = grey and is_grey(image)
            sizes[file] = image.size
    first, expected = next(iter(sizes.items()))
    for file, found in sizes.items() if size is None else ():
        shape = f"{found[0]}x{found[1]}"
        if found[0] != found[1]:
            raise DataError(
                f"{role} {file}: is {shape}, expected square images; give --size N to bring every "
                "image to NxN (shorter side to N, centre cut out)"
            )
        if found != expected:
            raise DataError(
                f"{role}: mixed sizes, {first} is {expected[0]}x{expected[1]} and {file} is {shape}; "
                "give --size N to bring every image to NxN"
            )
    return grey
