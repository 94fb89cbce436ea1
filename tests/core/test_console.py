"""Lines of progress where there is no terminal for bars."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from inversight.core.console import Terminal

Report = Callable[[float, int, int], str]


@pytest.fixture
def report() -> Report:
    """Report (seconds since the stage began, done, total) and return what is printed."""
    now = [0.0]
    printed = io.StringIO()
    progress = Terminal(Console(file=printed, width=200, get_time=lambda: now[0])).stage("attack")

    def at(seconds: float, done: int, total: int) -> str:
        before = len(printed.getvalue())
        now[0] = seconds
        progress(done, total, "pool classified")
        return printed.getvalue()[before:]

    return at


def test_time_left_ignores_steps_before_the_first_report(report: Report) -> None:
    # Half a minute for the pool, which is one part of a thousand.
    assert report(30, 1, 1000) == "attack: 1/1000, pool classified\n"
    assert report(35, 26, 1000) == ""  # not every moment
    assert report(50, 101, 1000) == "attack: 101/1000, 180 s left, pool classified\n"
    assert report(70, 201, 1000) == "attack: 201/1000, 160 s left, pool classified\n"


def test_time_left_ignores_steps_before_a_resume(report: Report) -> None:
    assert report(5, 500, 1000) == ""
    assert report(105, 600, 1000) == "attack: 600/1000, 400 s left, pool classified\n"
    assert report(505, 700, 1000) == "attack: 700/1000, 750 s left, pool classified\n"  # slow


def test_a_change_of_pace_shows_after_two_minutes(report: Report) -> None:
    """A game at one step a second, then a search at ten."""
    report(1, 1, 10_000)
    for seconds in range(11, 302, 10):
        report(seconds, seconds, 10_000)
    printed = [report(301 + 10 * n, 301 + 100 * n, 10_000) for n in range(1, 13)]
    assert printed[11] == "attack: 1501/10000, 850 s left, pool classified\n"
    assert "5486 s left" in printed[0]  # 210 steps in the last two minutes, 110 of them slow


def test_prints_nothing_at_the_end(report: Report) -> None:
    assert report(5, 0, 10) == "" and report(60, 10, 10) == ""
