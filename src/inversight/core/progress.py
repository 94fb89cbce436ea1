"""The protocol by which long work reports its progress."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A function that is called after each step with the steps done, the total and a short note."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def silent(done: int, total: int, note: str = "") -> None:
    """Report nothing, the default."""


def part_of(progress: Progress, *, before: int, share: int, whole: int) -> Progress:
    """Return the progress of a part of some work: ``share`` of ``whole`` steps, after ``before`` steps."""

    def report(done: int, total: int, note: str = "") -> None:
        progress(before + share * done // total, whole, note)

    return report
