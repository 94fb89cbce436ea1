"""Risk against queries: one line for each attack, and the points that are missing."""

from __future__ import annotations

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from inversight.report.figures import COLOURS, MARKERS, legend, new_figure, to_svg

_STYLES = ("-", "--", ":")
"""Line styles; another one each time the colours repeat."""

_FIGURES = (
    ("covered", 100.0, "private images covered, %", "Private images covered against queries"),
    ("ddcs_best", 1.0, "DDCS, best (up: nearer)", "DDCS, best, against queries"),
)
"""(measure, factor, axis label, caption) of each figure."""


def budget_figures(table: pd.DataFrame) -> list[tuple[Markup, str]]:
    """Return the figures of a table of budgets that have points, each with its caption."""
    figures = []
    for key, factor, axis, caption in _FIGURES:
        figure = curves(points_of(table, key, factor), axis, f"budget-{key.replace('_', '-')}")
        if figure is not None:
            figures.append((figure, caption))
    return figures


def points_of(table: pd.DataFrame, key: str, factor: float = 1.0) -> dict[str, pd.DataFrame]:
    """Return the points of each attack, fewest queries first; values are multiplied by ``factor``.

    The columns are queries (images sent to the target, above 0); value, low and high (a 95 % interval,
    NaN without); whole (the attack had no limit).
    """
    points = table[["queries"]].assign(
        attack=table["attack"].astype(str), whole=table["budget"].isna()
    )
    for name, column in (("value", key), ("low", f"{key}_low"), ("high", f"{key}_high")):
        points[name] = factor * table.reindex(columns=[column])[column].astype("float64")
    points = points[points["value"].notna() & (points["queries"] > 0)].astype(
        {"queries": "float64"}
    )
    # A budget above what the attack sends gives the whole attack again.
    return {
        str(name): own.sort_values(["queries", "whole"]).drop_duplicates("queries", keep="last")
        for name, own in points.groupby("attack", sort=False)
    }


def curves(found: dict[str, pd.DataFrame], axis: str, prefix: str) -> Markup | None:
    """Return the lines as SVG with the attacks' names in a legend; None without a point."""
    if not found:
        return None
    with new_figure(height=3.1 + 0.2 * ((len(found) + 1) // 2)) as (figure, axes):
        for row, points in enumerate(found.values()):
            _draw(axes, row, points)
        queries = pd.concat([points["queries"] for points in found.values()])
        _log_queries(axes, queries.min(), queries.max())
        axes.set_ylim(bottom=0.0)
        axes.set_xlabel("images sent to the target, all classes together")
        axes.set_ylabel(axis)
        legend(axes, list(found))
        return to_svg(
            figure, prefix, f"{axis} against queries, {len(found)} attacks, {len(queries)} points"
        )


def missing_points(table: pd.DataFrame) -> list[str]:
    """Return 'NAME within 4 and 60 queries: reason' for the points that could not be computed."""
    rows = table[table["covered"].isna()]
    found = pd.DataFrame(
        {
            "attack": rows["attack"].astype(str),
            "why": rows["reason"].fillna("no reason was recorded").astype(str),
            "at": rows["budget"].map(lambda n: "any number of" if pd.isna(n) else f"{int(n):,}"),
        }
    )
    # "8 and 500": "8, 500" could be read as one number.
    found = found.groupby(["attack", "why"], sort=False, as_index=False).agg(" and ".join)
    lines = found.itertuples(index=False)
    return [f"{attack} within {at} queries: {why}" for attack, why, at in lines]


def _draw(axes: Axes, row: int, points: pd.DataFrame) -> None:
    turn, which = divmod(row, len(COLOURS))
    colour, marker = COLOURS[which], MARKERS[which]
    axes.plot(
        points["queries"], points["value"], color=colour, marker=marker, label=str(row),
        linewidth=1.6, linestyle=_STYLES[turn % len(_STYLES)], markersize=5.5,
        markerfacecolor="white", markeredgewidth=1.4,
    )  # fmt: skip
    columns = ["queries", "value", "low", "high", "whole"]
    for queries, value, low, high, whole in points[columns].to_numpy(dtype=np.float64):
        if np.isfinite([low, high]).all():
            span = [low, high]
            axes.plot([queries] * 2, span, color=colour, marker="_", linewidth=1.2, alpha=0.4)
        if whole:
            axes.plot([queries], [value], color=colour, marker=marker, markersize=6.5)


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
    for least, unit, letter in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / unit:g}{letter}"
    return f"{value:,.4g}" if value < 1 else f"{value:,.0f}"
