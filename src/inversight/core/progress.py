"""Progress of long work, as a protocol that libraries and the command line share."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called after each step of long work with the steps done, the total and a short note."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def silent(done: int, total: int, note: str = "") -> None:
    """The default: reports nothing."""
