"""Risk against queries: a line for each attack, and in words what could not be had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from inversight.report import words
from inversight.report.figures import STYLE, to_svg

_COLOURS = ("#2563a8", "#c2570c", "#1a7048", "#8e4fa8", "#b3261e", "#8a6500", "#4b5563")
_MARKERS = "osD^vPX"
_STYLES = ("-", "--", ":")
"""Colour and marker go together and a new round has another dash, so that print tells them apart."""
_LONGEST = 24
"""Letters of a name in the legend."""


@dataclass(frozen=True)
class Point:
    """queries: what was sent, above 0. low, high: a 95 % interval. whole: the attack was not cut."""

    queries: float
    value: float
    low: float | None
    high: float | None
    whole: bool


@dataclass(frozen=True)
class BudgetPart:
    """What the page shows. figures: pictures with their captions; rows: cells in words."""

    figures: list[tuple[str, str]]
    missing: list[str]
    rows: list[tuple[str, str, str, str, str, str]]


def budget_part(table: pd.DataFrame | None) -> BudgetPart | None:
    """The figures, what is missing in them, and the numbers; None without a table of budgets."""
    if table is None or not len(table):
        return None
    wanted = (
        (
            "covered",
            100.0,
            "private images covered, %",
            "Share of the private images covered, against images sent",
        ),
        ("ddcs_best", 1.0, "DDCS, best (up: nearer)", "DDCS, best, against images sent"),
    )
    figures = []
    for key, factor, axis, caption in wanted:
        picture = curves(lines(table, key, factor), axis, f"budget-{key.replace('_', '-')}")
        if picture is not None:
            figures.append((picture, caption))
    return BudgetPart(figures, missing(table), [_row(one) for one in table.to_dict("records")])


def lines(table: pd.DataFrame, key: str, factor: float = 1.0) -> dict[str, list[Point]]:
    """The points that there are of each attack, fewest queries first; values times ``factor``."""
    found: dict[str, list[Point]] = {}
    for row in table.to_dict("records"):
        value, queries = _number(row, key, factor), _number(row, "queries")
        if value is None or not queries:
            continue
        whole = words.is_missing(row["budget"])
        low, high = (_number(row, f"{key}_{end}", factor) for end in ("low", "high"))
        found.setdefault(str(row["attack"]), []).append(Point(queries, value, low, high, whole))
    for name, points in found.items():
        # A budget above what the attack sends is the whole attack again.
        by_queries = {p.queries: p for p in sorted(points, key=lambda p: (p.queries, p.whole))}
        found[name] = list(by_queries.values())
    return found


def curves(found: dict[str, list[Point]], axis: str, prefix: str) -> str | None:
    """The lines as SVG; None if there is no point. The names are in the picture, as text."""
    if not found:
        return None
    with matplotlib.style.context(["default", STYLE]):
        rows = (len(found) + 1) // 2
        figure = Figure(figsize=(5.4, 3.1 + 0.2 * rows), layout="constrained")
        axes = figure.subplots()
        for number, points in enumerate(found.values()):
            _draw(axes, number, points)
        sent = [p.queries for points in found.values() for p in points]
        _queries_axis(axes, min(sent), max(sent))
        axes.set_ylim(bottom=0.0)
        axes.set_xlabel("images sent to the target, all classes together")
        axes.set_ylabel(axis)
        legend = axes.legend(
            loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2 if len(found) > 1 else 1,
            frameon=False, borderaxespad=0.2, fontsize=9.5,
        )  # fmt: skip
        for text, name in zip(legend.get_texts(), found, strict=True):
            text.set_parse_math(False)  # a name is not mathematics, whatever signs are in it
            text.set_text(_short(words.visible(name)))
        count = sum(map(len, found.values()))
        return to_svg(
            figure, prefix, f"{axis} against queries, {len(found)} attacks, {count} points"
        )


def missing(table: pd.DataFrame) -> list[str]:
    """'NAME within 4 and 60 queries: why' for the points that could not be had."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in table.to_dict("records"):
        if words.is_missing(row["covered"]):
            reason = "no reason was recorded" if words.is_missing(row["reason"]) else row["reason"]
            found.setdefault((str(row["attack"]), str(reason)), []).append(_within(row))
    # 8 and 500, not 8, 500, which is a number too.
    return [f"{name} within {' and '.join(at)} queries: {why}" for (name, why), at in found.items()]


def _draw(axes: Axes, number: int, points: Sequence[Point]) -> None:
    turn, which = divmod(number, len(_COLOURS))
    colour, marker = _COLOURS[which], _MARKERS[which]
    axes.plot(
        [p.queries for p in points], [p.value for p in points], color=colour, linewidth=1.6,
        linestyle=_STYLES[turn % len(_STYLES)], marker=marker, markersize=5.5,
        markerfacecolor="white", markeredgewidth=1.4, label=str(number),
    )  # fmt: skip
    for p in points:
        if p.low is not None and p.high is not None:
            ends = [p.low, p.high]
            axes.plot([p.queries] * 2, ends, color=colour, linewidth=1.2, alpha=0.4, marker="_")
        if p.whole:
            axes.plot([p.queries], [p.value], color=colour, marker=marker, markersize=6.5)


def _queries_axis(axes: Axes, low: float, high: float) -> None:
    """Logarithmic, with round numbers of queries written out."""
    axes.set_xscale("log")
    # At least a decade, so that there is a round number to write out.
    beyond = max(1.3, (10.0 * low / high) ** 0.5)
    axes.set_xlim(low / beyond, high * beyond)
    # Whole decades alone would leave a short axis without a number.
    subs = (1.0,) if high / low > 50 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _count(x)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _count(value: float) -> str:
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= 10 * unit or (value >= unit and letter == "M"):
            return f"{value / unit:g}{letter}"
    return f"{value:,.4g}" if value < 1 else f"{value:,.0f}"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _within(row: dict[Any, Any]) -> str:
    return "any number of" if words.is_missing(row["budget"]) else f"{int(row['budget']):,}"


def _row(row: dict[Any, Any]) -> tuple[str, str, str, str, str, str]:
    sent = words.NONE if words.is_missing(row["queries"]) else f"{int(row['queries']):,}"
    return (
        str(row["attack"]),
        "as it was run" if words.is_missing(row["budget"]) else _within(row),
        sent,
        str(row["reconstructions"]),
        words.number(row["covered"]),
        words.number(row["ddcs_best"]),
    )


def _number(row: dict[Any, Any], key: str, factor: float = 1.0) -> float | None:
    value = row.get(key)
    return None if words.is_missing(value) else factor * float(value)  # type: ignore[arg-type]
