"""Risk against queries: one line for each attack, and the points that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from inversight.report.figures import COLOURS, MARKERS, legend, new_figure, to_svg
from inversight.report.formatting import NONE, get_number, is_missing, number

_STYLES = ("-", "--", ":")
"""Line styles; another one each time the colours repeat."""

_FIGURES = (
    ("covered", 100.0, "private images covered, %", "Private images covered against queries"),
    ("ddcs_best", 1.0, "DDCS, best (up: nearer)", "DDCS, best, against queries"),
)
"""(measure, factor, axis label, caption) of each figure."""


@dataclass(frozen=True)
class BudgetPoint:
    """One measurement of an attack.

    queries: images sent to the target, above 0. low, high: a 95 % interval. whole: the attack had
    no limit.
    """

    queries: float
    value: float
    low: float | None
    high: float | None
    whole: bool


@dataclass(frozen=True)
class BudgetSection:
    """A section of the page. figures: SVGs with captions; rows: cells of the table as text."""

    figures: list[tuple[str, str]]
    missing: list[str]
    rows: list[tuple[str, ...]]


def budget_section(table: pd.DataFrame | None) -> BudgetSection | None:
    """Return figures, missing points and numbers; None without a table of budgets."""
    if table is None or not len(table):
        return None
    figures = []
    for key, factor, axis, caption in _FIGURES:
        figure = curves(points_of(table, key, factor), axis, f"budget-{key.replace('_', '-')}")
        if figure is not None:
            figures.append((figure, caption))
    return BudgetSection(figures, missing_points(table), [_row(one) for one in _records(table)])


def points_of(table: pd.DataFrame, key: str, factor: float = 1.0) -> dict[str, list[BudgetPoint]]:
    """Return the points of each attack, fewest queries first; values are multiplied by ``factor``."""
    found: dict[str, list[BudgetPoint]] = {}
    for row in _records(table):
        value, low, high = (
            _scaled(row, name, factor) for name in (key, f"{key}_low", f"{key}_high")
        )
        queries = get_number(row, "queries")
        if value is not None and queries:
            point = BudgetPoint(queries, value, low, high, is_missing(row["budget"]))
            found.setdefault(str(row["attack"]), []).append(point)
    for name, points in found.items():
        # A budget above what the attack sends gives the whole attack again.
        by_queries = {p.queries: p for p in sorted(points, key=lambda p: (p.queries, p.whole))}
        found[name] = list(by_queries.values())
    return found


def _scaled(row: dict[str, Any], key: str, factor: float) -> float | None:
    value = get_number(row, key)
    return None if value is None else factor * value


def curves(found: dict[str, list[BudgetPoint]], axis: str, prefix: str) -> str | None:
    """Return the lines as SVG with the attacks' names in a legend; None without a point."""
    if not found:
        return None
    with new_figure(height=3.1 + 0.2 * ((len(found) + 1) // 2)) as (figure, axes):
        for row, points in enumerate(found.values()):
            _draw(axes, row, points)
        queries = [p.queries for points in found.values() for p in points]
        _log_queries(axes, min(queries), max(queries))
        axes.set_ylim(bottom=0.0)
        axes.set_xlabel("images sent to the target, all classes together")
        axes.set_ylabel(axis)
        legend(axes, list(found))
        return to_svg(
            figure, prefix, f"{axis} against queries, {len(found)} attacks, {len(queries)} points"
        )


def missing_points(table: pd.DataFrame) -> list[str]:
    """Return 'NAME within 4 and 60 queries: reason' for the points that could not be computed."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in _records(table):
        if is_missing(row["covered"]):
            reason = "no reason was recorded" if is_missing(row["reason"]) else row["reason"]
            found.setdefault((str(row["attack"]), str(reason)), []).append(_budget(row))
    # "8 and 500": "8, 500" could be read as one number.
    return [f"{name} within {' and '.join(at)} queries: {why}" for (name, why), at in found.items()]


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


def _draw(axes: Axes, row: int, points: Sequence[BudgetPoint]) -> None:
    turn, which = divmod(row, len(COLOURS))
    look: dict[str, Any] = {"color": COLOURS[which], "marker": MARKERS[which]}
    axes.plot(
        [p.queries for p in points], [p.value for p in points], **look, label=str(row),
        linewidth=1.6, linestyle=_STYLES[turn % len(_STYLES)], markersize=5.5,
        markerfacecolor="white", markeredgewidth=1.4,
    )  # fmt: skip
    for p in points:
        if p.low is not None and p.high is not None:
            bar = {**look, "marker": "_"}
            axes.plot([p.queries] * 2, [p.low, p.high], **bar, linewidth=1.2, alpha=0.4)
        if p.whole:
            axes.plot([p.queries], [p.value], **look, markersize=6.5)


def _log_queries(axes: Axes, low: float, high: float) -> None:
    """Make the x axis logarithmic, with round numbers of queries as labels."""
    axes.set_xscale("log")
    # At least a decade, so that there is a round number to label.
    beyond = max(1.3, (10.0 * low / high) ** 0.5)
    axes.set_xlim(low / beyond, high * beyond)
    # A short axis may contain no power of ten.
    subs = (1.0,) if high / low > 50 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _count(x)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _count(value: float) -> str:
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= 10 * unit or (value >= unit and letter == "M"):
            return f"{value / unit:g}{letter}"
    return f"{value:,.4g}" if value < 1 else f"{value:,.0f}"


def _budget(row: dict[str, Any]) -> str:
    return "any number of" if is_missing(row["budget"]) else f"{int(row['budget']):,}"


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(row["attack"]),
        "no limit" if is_missing(row["budget"]) else _budget(row),
        NONE if is_missing(row["queries"]) else f"{int(row['queries']):,}",
        str(row["reconstructions"]),
        number(row["covered"]),
        number(row["ddcs_best"]),
    )
