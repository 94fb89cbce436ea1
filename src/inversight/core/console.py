"""Messages of long work to the user: lines, and a progress bar with the time left of each stage."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rich import progress as bars
from rich.console import Console

from inversight.core.progress import Progress, silent

_PACE_SECONDS = 120.0
"""The time left is estimated by the pace of the last two minutes, not of the whole stage: earlier steps may
be of another kind, such as a pool that is classified, or were done before the run was resumed."""


class Reporter(Protocol):
    """Receiver of the messages of an audit."""

    def say(self, text: str) -> None:
        """Show one or more lines."""

    def warn(self, text: str) -> None:
        """Show a warning."""

    def stage(self, name: str) -> Progress:
        """Return the progress of a stage that begins now."""


class Quiet:
    """A reporter that shows nothing, the default of the library."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def stage(self, name: str) -> Progress:
        return silent


@dataclass
class Log:
    """A reporter that keeps all messages; it passes on warnings and keeps what is said for the report."""

    reporter: Reporter
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.reporter.warn(text)

    def stage(self, name: str) -> Progress:
        return self.reporter.stage(name)


class Terminal:
    """A reporter with progress bars on a terminal, and a plain line every ten seconds elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr, highlight=False)
        self._bars = bars.Progress(
            bars.TextColumn("{task.description:<18}"), bars.BarColumn(bar_width=24),
            bars.MofNCompleteColumn(), bars.TimeElapsedColumn(), bars.TextColumn("left"),
            bars.TimeRemainingColumn(), bars.TextColumn("[dim]{task.fields[note]}"),
            console=self.console, redirect_stdout=False, speed_estimate_period=_PACE_SECONDS,
        )  # fmt: skip

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self.console.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)

    def stage(self, name: str) -> Progress:
        task = self._bars.add_task(name, total=None, note="")
        shown = self.console.get_time()
        first: tuple[int, float] | None = None

        def update(done: int, total: int, note: str = "") -> None:
            nonlocal shown, first
            self._bars.update(task, completed=done, total=total, note=note)
            now = self.console.get_time()
            first = first or (done, now)
            if not self._bars.live.is_started and now - shown >= 10 and 0 < done < total:
                shown = now
                seconds = self._bars.tasks[task].time_remaining
                if seconds is None and done > first[0]:  # a step is longer than the pace's period
                    seconds = (total - done) * (now - first[1]) / (done - first[0])
                left = "" if seconds is None else f"{seconds:.0f} s left, "
                self.say(f"{name}: {done}/{total}, {left}{note}")

        return update

    @contextmanager
    def live(self, wanted: bool = True) -> Iterator[None]:
        """Show progress bars while the block runs, if they are wanted and this is a terminal."""
        if not wanted or not self.console.is_terminal:
            yield
            return
        with self._bars:
            try:
                yield
            finally:
                for task in self._bars.tasks:
                    if task.total is None:
                        self._bars.update(task.id, total=1, completed=1)
