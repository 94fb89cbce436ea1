"""Messages of long work to the user: lines, and a progress bar with the time left of each stage."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from inversight.core.progress import Progress, silent

_LINES = 6
"""Number of the last lines from whose pace the time left is estimated."""


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
        self._bars: Bars | None = None

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self.console.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)

    def stage(self, name: str) -> Progress:
        if self._bars is not None:
            task = self._bars.add_task(name, total=None, note="")
            bars = self._bars

            def update(done: int, total: int, note: str = "") -> None:
                bars.update(task, completed=done, total=total, note=note)

            return update
        shown = time.monotonic()
        # The pace of the last few lines, not of the whole stage: earlier steps may be of another kind,
        # such as a pool that is classified, or were done before the run was resumed.
        before: deque[tuple[int, float]] = deque(maxlen=_LINES)

        def line(done: int, total: int, note: str = "") -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown >= 10 and 0 < done < total:
                shown = now
                left = ""
                if before and done > before[0][0]:
                    pace = (now - before[0][1]) / (done - before[0][0])
                    left = f"{pace * (total - done):.0f} s left, "
                self.say(f"{name}: {done}/{total}, {left}{note}")
                before.append((done, now))
            if not before:
                before.append((done, now))

        return line

    @contextmanager
    def live(self, wanted: bool = True) -> Iterator[None]:
        """Show progress bars while the block runs, if they are wanted and this is a terminal."""
        if not wanted or not self.console.is_terminal:
            yield
            return
        with Bars(
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=self.console,
            redirect_stdout=False,
        ) as self._bars:
            try:
                yield
            finally:
                for task in self._bars.tasks:
                    if task.total is None:
                        self._bars.update(task.id, total=1, completed=1)
        self._bars = None
