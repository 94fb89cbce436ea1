"""Reads a folder of images with one subfolder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from inversight.core.errors import DataError
from inversight.core.progress import Progress, silent
from inversight.data.decoding import SUFFIXES, decode, is_grey, open_image, to_tensor
from inversight.data.images import ImageSet, pixel_hash


def load_folder(
    path: Path,
    *,
    role: str,
    size: int | None = None,
    channels: int | None = None,
    labelled: bool = True,
    limit: int | None = None,
    progress: Progress = silent,
) -> ImageSet:
    """Read a folder with one subfolder for each class, rows sorted by id.

    Sizes are checked from the files' headers before anything is decoded. With ``size`` the shorter
    side is brought to it and the centre cut out. ``channels`` None: 1 if every image is grey,
    otherwise 3. Transparency is laid on white, values are scaled to 8 bits by the range of the file's
    type, EXIF turns are applied, and of an animation the first frame counts. ``labelled`` False: class
    subfolders are optional. ``limit``: the first so many classes.

    Raises:
        DataError: one line that names the folder or file.
    """
    classes, files = _list_files(path, role, labelled, limit)
    grey = _check_headers(files, role, size)
    wanted = channels or (1 if grey else 3)
    images, hashes = [], []
    for done, (file, _) in enumerate(files, start=1):
        pixels = decode(file, role)
        hashes.append(pixel_hash(pixels))
        images.append(to_tensor(pixels, size, wanted))
        progress(done, len(files), role)
    position = {name: i for i, name in enumerate(classes)}
    labels = [position[name] if name is not None else -1 for _, name in files]
    return ImageSet(
        images=torch.stack(images),
        labels=torch.tensor(labels, dtype=torch.int64),
        ids=tuple(file.relative_to(path).as_posix() for file, _ in files),
        classes=tuple(classes),
        hashes=tuple(hashes),
    )


def _list_files(
    path: Path, role: str, labelled: bool, limit: int | None
) -> tuple[list[str], list[tuple[Path, str | None]]]:
    """Class names, and files with their class, sorted by id."""
    layout = f"expected {path}/CLASS/IMAGE.png, one subfolder for each class"
    try:
        if not path.exists():
            raise DataError(f"{role} {path}: no such folder; {layout}")
        if not path.is_dir():
            raise DataError(f"{role} {path}: is a file; {layout}")
        entries = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise DataError(f"{role} {path}: cannot be read ({error.strerror})") from None
    if not entries:
        raise DataError(f"{role} {path}: is empty; {layout}")
    folders = [p for p in entries if p.is_dir()]
    loose = [p for p in entries if p.is_file() and p.suffix.lower() in SUFFIXES]
    if labelled and not folders:
        raise DataError(f"{role} {path}: has no class subfolders; {layout}")
    files: list[tuple[Path, str | None]] = []
    if labelled or not loose:
        for folder in folders[:limit]:
            inside = _images_below(folder, role)
            if not inside:
                raise DataError(
                    f"{role} {folder}: holds no images ({', '.join(sorted(SUFFIXES))}); "
                    "add some or remove the folder"
                )
            files += [(file, folder.name) for file in inside]
        classes = [folder.name for folder in folders[:limit]]
    else:
        classes = []
        inside = loose + [file for folder in folders for file in _images_below(folder, role)]
        files = [(file, None) for file in inside]
    if not files:
        raise DataError(f"{role} {path}: holds no images ({', '.join(sorted(SUFFIXES))})")
    for file, _ in files:
        try:
            str(file).encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"{role} {file!r}: file name is not UTF-8; rename it") from None
    files.sort(key=lambda row: row[0].relative_to(path).as_posix())
    return classes, files


def _images_below(folder: Path, role: str) -> list[Path]:
    try:
        # rglob does not follow links to folders, so no loop can hold it up.
        return sorted(
            p
            for p in folder.rglob("*")
            if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
        )
    except OSError as error:
        raise DataError(f"{role} {folder}: cannot be read ({error.strerror})") from None


def _check_headers(files: Sequence[tuple[Path, str | None]], role: str, size: int | None) -> bool:
    """Check declared sizes; True if every image is grey."""
    grey = True
    first: tuple[Path, tuple[int, int]] | None = None
    for file, _ in files:
        with open_image(file, role) as image:
            found = image.size
            grey = grey and is_grey(image)
        if size is not None:
            continue
        if found[0] != found[1]:
            raise DataError(
                f"{role} {file}: is {found[0]}x{found[1]}, expected square images; give --size N "
                "to bring every image to NxN (shorter side to N, centre cut out)"
            )
        if first is None:
            first = (file, found)
        elif found != first[1]:
            raise DataError(
                f"{role}: mixed sizes, {first[0]} is {first[1][0]}x{first[1][1]} and {file} is "
                f"{found[0]}x{found[1]}; give --size N to bring every image to NxN"
            )
    return grey
