"""How numbers, durations and names are written in reports and on a terminal."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.table import Table

NONE = "\N{EN DASH}"
"""Stands for a missing value."""


def is_missing(value: Any) -> bool:
    """Return whether ``value`` is None or NaN."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def number(value: Any) -> str:
    """Return a number in three significant digits, ``NONE`` if it is missing, text unchanged."""
    if is_missing(value):
        return NONE
    if isinstance(value, (bool, int)) or not hasattr(value, "__float__"):
        return str(value)
    real = float(value)
    if not math.isfinite(real):
        return "∞" if real > 0 else "-∞"
    size = abs(real)
    if size == 0:
        return "0"
    if size >= 1e7 or size < 1e-4:
        return f"{real:.2e}"
    return f"{real:,.0f}" if size >= 999.5 else f"{real:.3g}"


def signed(value: Any) -> str:
    """Return a number with its sign."""
    return f"+{number(value)}" if not is_missing(value) and value > 0 else number(value)


def percent(fraction: float) -> str:
    """Return 0.125 as '12.5 %', with two decimals at most unless that would be 0."""
    return f"{round(100.0 * fraction, 2) or 100.0 * fraction:g} %"


def duration(seconds: float) -> str:
    """Return '7.5 s', '3 min 20 s' or '2 h 05 min'."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def get_number(found: Mapping[str, Any] | None, key: str) -> float | None:
    """Return ``found[key]`` as a float; None if it is missing."""
    value = None if found is None else found.get(key)
    return None if is_missing(value) else float(value)  # type: ignore[arg-type]


def get_interval(found: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """Return the interval (low, high) of a measure; None without one."""
    low, high = get_number(found, "low"), get_number(found, "high")
    return None if low is None or high is None else (low, high)


def interval_text(found: Mapping[str, Any] | None) -> str:
    """Return '0.1 to 0.3', or "" without an interval."""
    bounds = get_interval(found)
    return "" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"


def with_interval(found: Mapping[str, Any]) -> str:
    """Return 'value [low, high]', or the value alone without an interval."""
    bounds = get_interval(found)
    value = number(found["value"])
    return value if bounds is None else f"{value} [{number(bounds[0])}, {number(bounds[1])}]"


def visible(text: Any) -> str:
    """Return ``text`` with characters that a page or a terminal would interpret written as escapes.

    Names come from files: one may hold a newline, a colour code or a change of reading direction.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def significant(value: float) -> str:
    """Return a value to sort by, exact enough to tell apart any two that are displayed."""
    return f"{value:.9g}"


def mapping(value: Any) -> Mapping[str, Any]:
    """Return ``value`` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def finite(values: ArrayLike | None) -> NDArray[np.float64]:
    """Return the finite values as an array; None has none."""
    array = np.asarray(() if values is None else values, dtype=np.float64)
    return array[np.isfinite(array)]


def plain_text(parts: Iterable[str | Table], width: int) -> str:
    """Return lines and tables as plain text, ``width`` columns wide at most."""
    console = Console(
        file=io.StringIO(), width=width, markup=False, highlight=False, emoji=False,
        color_system=None,
    )  # fmt: skip
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def plain_table(
    headings: Iterable[str], rows: Iterable[Iterable[str]], numeric: Collection[int] = ()
) -> Table:
    """Return a table without lines; columns at the positions ``numeric`` are aligned right."""
    table = Table(box=None, pad_edge=False, header_style="")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
