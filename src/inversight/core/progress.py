"""The protocol by which long work reports its progress."""

from __future__ import annotations

from typing import Protocol


class Figures(str):
    """A note made of figures, as in "loss 0.312", that keeps their values for whoever follows the run."""

    values: dict[str, float]

    def __new__(cls, text: str, **values: float) -> Figures:
        note = super().__new__(cls, text)
        note.values = values
        return note


class Progress(Protocol):
    """A function that is called after each step with the steps done, the total and a short note.

    A note of the class :class:`Figures` has the values of what it says.
    """

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def silent(done: int, total: int, note: str = "") -> None:
    """Report nothing, the default."""


def part_of(progress: Progress, *, before: int, share: int, whole: int) -> Progress:
    """Return the progress of a part of some work: ``share`` of ``whole`` steps, after ``before`` steps."""

    def report(done: int, total: int, note: str = "") -> None:
        progress(before + share * done // total, whole, note)

    return report
