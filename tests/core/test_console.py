"""What long work tells a person where there is no terminal for bars."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from inversight.core.console import Terminal

Tell = Callable[[float, int, int], str]


@pytest.fixture
def tell() -> Tell:
    """(seconds since the stage began, done, total) -> what is said then."""
    now = [0.0]
    said = io.StringIO()
    progress = Terminal(Console(file=said, width=200, get_time=lambda: now[0])).stage("attack")

    def at(seconds: float, done: int, total: int) -> str:
        before = len(said.getvalue())
        now[0] = seconds
        progress(done, total, "pool classified")
        return said.getvalue()[before:]

    return at


def test_time_left_is_not_by_what_came_before_the_first_report(tell: Tell) -> None:
    # Half a minute for the pool, which is one part of a thousand.
    assert tell(30, 1, 1000) == "attack: 1/1000, pool classified\n"
    assert tell(35, 26, 1000) == ""  # not every moment
    assert tell(50, 101, 1000) == "attack: 101/1000, 180 s left, pool classified\n"
    assert tell(70, 201, 1000) == "attack: 201/1000, 160 s left, pool classified\n"


def test_what_was_done_another_day_does_not_count_as_quick(tell: Tell) -> None:
    assert tell(5, 500, 1000) == ""
    assert tell(105, 600, 1000) == "attack: 600/1000, 400 s left, pool classified\n"


def test_a_change_of_pace_shows_after_two_minutes(tell: Tell) -> None:
    """A game at one step a second, then a search at ten."""
    tell(1, 1, 10_000)
    for seconds in range(11, 302, 10):
        tell(seconds, seconds, 10_000)
    said = [tell(301 + 10 * n, 301 + 100 * n, 10_000) for n in range(1, 13)]
    assert said[11] == "attack: 1501/10000, 850 s left, pool classified\n"
    assert "5486 s left" in said[0]  # 210 steps in the last two minutes, 110 of them slow


def test_nothing_is_said_of_the_end(tell: Tell) -> None:
    assert tell(5, 0, 10) == "" and tell(60, 10, 10) == ""
