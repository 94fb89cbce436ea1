"""Lists a folder of images with one subfolder for each class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from inversight.core.errors import DataError
from inversight.data.decoding import formats
from inversight.data.listing import Listing

_NAMED = 3
"""Files that a warning names; it counts the others."""
_SYSTEM_NAMES = frozenset(
    {
        "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle",
        "$recycle.bin", "system volume information", "lost+found",
    }
)  # fmt: skip
"""Files and folders of macOS, Windows, Synology and Linux, in lower case."""


def list_folder(path: Path, role: str, *, labelled: bool, limit: int | None) -> Listing:
    """List the images of a folder with one subfolder for each class.

    Hidden files and those of operating systems (``__MACOSX``, ``Thumbs.db``) are skipped.

    Args:
        path: the folder.
        role: how messages name it, such as "--private".
        labelled: False: class subfolders are optional; images lie in them or beside each other.
        limit: number of classes to list, in order; None: all.

    Raises:
        DataError: one line that names the folder or file.
    """
    classes, files, left_out = _list_files(path, role, labelled, limit)
    paths = [file for file, _ in files]
    return Listing(
        path, [file.relative_to(path).as_posix() for file in paths], [label for _, label in files],
        classes, lambda rows: (paths[row] for row in rows), paths,
        remarks=(_left_out(left_out, path, role),) if left_out else (),
    )  # fmt: skip


def _list_files(
    path: Path, role: str, labelled: bool, limit: int | None
) -> tuple[list[str], list[tuple[Path, str | None]], list[Path]]:
    """Return class names, images with their class sorted by id, and files that are left out."""
    layout = f"expected {path}/CLASS/IMAGE.png, one subfolder for each class"
    try:
        if not path.is_dir():
            what = "is a file" if path.exists() else "no such folder"
            raise DataError(f"{role} {path}: {what}; {layout}")
        entries = sorted(p for p in path.iterdir() if not is_system(p.name))
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


def is_system(name: str) -> bool:
    """Return whether a file or folder is hidden or an operating system's own."""
    return name.startswith(".") or name.casefold() in _SYSTEM_NAMES


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield files at any depth, and links to folders, which are not followed because they may form a loop."""

    def fail(error: OSError) -> None:
        raise error

    for here, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not is_system(name)]
        links = [name for name in folders if Path(here, name).is_symlink()]
        yield from (Path(here, name) for name in files + links if not is_system(name))


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
