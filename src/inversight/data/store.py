"""Decoded images in memory, or in a file that is mapped into memory where there are many."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from inversight.core.errors import DiskFullError
from inversight.core.run import write_json

MOST_IN_MEMORY = 256 << 20
"""Bytes of images that are kept in memory; the pages of more are read from a file as they are used."""


class PixelStore(AbstractContextManager["PixelStore"]):
    """Room for uint8 images of ``shape`` (N, C, H, W), which several threads may fill.

    More than ``MOST_IN_MEMORY`` go to ``file``, or without one to a file that no name leads to once the block
    ends, so that it is gone with the tensor.

    Raises:
        DiskFullError: there is no room for it.
    """

    def __init__(self, shape: Sequence[int], file: Path | None = None) -> None:
        self.shape, self.file, self._kept = tuple(shape), file, file is not None
        self._memory: Tensor | None = None
        self._handle = -1
        needed = math.prod(self.shape)
        if needed <= MOST_IN_MEMORY:
            self._memory = torch.empty(self.shape, dtype=torch.uint8)
            return
        if file is None:
            self._handle, name = tempfile.mkstemp(prefix="inversight-")
            self.file = Path(name)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        folder = Path(self.file or "").parent
        free = shutil.disk_usage(folder).free
        if free < needed:
            self.__exit__(DiskFullError, None, None)
            raise DiskFullError(
                f"{folder}: {needed / 1e6:,.0f} MB are needed for decoded images and {free / 1e6:,.0f} MB "
                "are free there; make room, or set TMPDIR to another folder"
            )

    def put(self, row: int, images: Tensor) -> None:
        """Keep ``images`` (K, C, H, W) as the rows from ``row`` on."""
        if self._memory is not None:
            self._memory[row : row + len(images)] = images
            return
        content = memoryview(images.contiguous().numpy().tobytes())
        at = row * math.prod(self.shape[1:])
        while content:
            written = os.pwrite(self._handle, content, at)
            content, at = content[written:], at + written

    def tensor(self) -> Tensor:
        """Return all images; writing to them changes no file."""
        return self._memory if self._memory is not None else _mapped(self.file, self.shape)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._handle >= 0:
            os.close(self._handle)
            if self.file is not None and (kind is not None or not self._kept):
                with suppress(OSError):  # Windows keeps a file that is mapped
                    self.file.unlink()


def _mapped(file: Path | None, shape: Sequence[int]) -> Tensor:
    size = math.prod(shape)
    return torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8).view(*shape)


class DecodedImages:
    """Sets of decoded images in a folder, each by a key, so that a run that goes on decodes none again."""

    def __init__(self, folder: Path, files: Sequence[Path], facts: object) -> None:
        """Name the set that comes from ``files`` with ``facts``; files that change make it another."""
        stats = [(str(file.absolute()), s.st_size, s.st_mtime_ns)
                 for file, s in ((file, file.stat()) for file in files)]  # fmt: skip
        key = hashlib.sha256(repr((stats, facts)).encode()).hexdigest()[:20]
        self.pixels, self.facts = folder / f"{key}.uint8", folder / f"{key}.json"

    def find(self) -> tuple[Tensor, list[str]] | None:
        """Return the images and their hashes, None if they are not there."""
        if not (self.pixels.is_file() and self.facts.is_file()):
            return None
        found = json.loads(self.facts.read_text())
        if self.pixels.stat().st_size != math.prod(found["shape"]):
            return None
        return _mapped(self.pixels, found["shape"]), found["hashes"]

    def keep(self, images: Tensor, hashes: Sequence[str]) -> None:
        """Mark the images in ``pixels`` as whole."""
        if self.pixels.is_file():
            write_json(self.facts, {"shape": list(images.shape), "hashes": list(hashes)})
