"""Figures as SVG to embed in a page: histograms, and what the other figures share.

The same data gives the same bytes, and a figure needs no other file.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from inversight.report.formatting import finite, number, visible

Floats = NDArray[np.float64]

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "inversight",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#6b7280",
    "axes.labelcolor": "#1f2937",
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
}
COLOURS = ("#2563a8", "#c2570c", "#1a7048", "#8e4fa8", "#b3261e", "#8a6500", "#4b5563")
MARKERS = "osD^vPX"
"""One for each colour, so that the series differ in print and for any colour vision."""
_LOOKS: dict[str, dict[str, Any]] = {
    "private": {"color": COLOURS[0], "histtype": "stepfilled", "alpha": 0.35},
    "holdout": {"color": COLOURS[1], "histtype": "step", "linewidth": 1.8},
}
"""How the histogram of each set of images is drawn."""
_LONGEST = 24
"""Letters of a name in a legend."""
_BINS, _LOG_BINS = 24, 40
_LOG_ABOVE = 50.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""
_LOG_DEPTH = 1000.0
"""A logarithmic axis begins at the median divided by this; smaller values are in its first bar."""


@contextmanager
def new_figure(width: float = 5.4, height: float = 3.2) -> Iterator[tuple[Figure, Axes]]:
    """Provide a new figure of that size in inches, and its axes, in the style of the report."""
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


@contextmanager
def new_wide_figure() -> Iterator[tuple[Figure, Axes, Axes]]:
    """Provide a figure as wide as the page, its axes, and narrow ones beside them with the same y axis."""
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=(11.0, 3.9), layout="constrained")
        axes, side = figure.subplots(1, 2, sharey=True, width_ratios=(4.0, 1.0))
        yield figure, axes, side


def legend(axes: Axes, names: Sequence[str]) -> Legend:
    """Put a legend above the axes that gives its series these names, each as plain text."""
    box = axes.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2 if len(names) > 1 else 1,
        frameon=False, borderaxespad=0.2, fontsize=9.5,
    )  # fmt: skip
    for text, name in zip(box.get_texts(), names, strict=True):
        text.set_parse_math(False)  # a dollar sign in a name is not the start of a formula
        shown = visible(name)
        text.set_text(shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…")
    return box


def score_histogram(scores: Sequence[float]) -> Markup | None:
    """Return the distribution of the per-image scores above 0 as SVG; None if there are none."""
    values = finite(scores)
    values = values[values > 0]
    if not len(values):
        return None
    with new_figure() as (figure, axes):
        bins = _bins(values, axes)
        axes.hist(
            np.maximum(values, bins[0]), bins=bins.tolist(), color=COLOURS[0], alpha=0.85,
            edgecolor="white", linewidth=0.5,
        )  # fmt: skip
        axes.set_xlabel("DDCS best of an image (right: nearer)")
        axes.set_ylabel("private images")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        return to_svg(figure, "scores", f"Histogram of the scores of {len(values)} images above 0")


def distance_histogram(private: Sequence[float], holdout: Sequence[float] | None) -> Markup | None:
    """Return the distribution of the nearest distances of both sets as SVG; None without any."""
    sets = {"private": finite(private), "holdout": finite(holdout)}
    if not len(sets["private"]):
        return None
    both = np.concatenate(list(sets.values()))
    with new_figure() as (figure, axes):
        bins = _bins(both, axes).tolist()
        for name, values in sets.items():
            if not len(values):
                continue
            middle = float(np.median(values))
            axes.hist(
                np.maximum(values, bins[0]), bins=bins, **_LOOKS[name],
                weights=np.full(len(values), 100.0 / len(values)),
                label=f"{name} ({len(values)}), median {number(middle)}",
            )  # fmt: skip
            colour = _LOOKS[name]["color"]
            axes.axvline(max(middle, bins[0]), color=colour, linestyle="--", linewidth=1.4)
        first = "; first bar: all below it too" if bool((both < bins[0]).any()) else ""
        axes.set_xlabel(f"nearest distance (left: nearer{first})")
        axes.set_ylabel("% of images")
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, borderaxespad=0.2)
        names = "private and holdout" if len(sets["holdout"]) else "private"
        return to_svg(figure, "distances", f"Histogram of the nearest distances of {names} images")


def _bins(values: Floats, axes: Axes) -> Floats:
    """Return the edges; where the range is wide they are logarithmic and begin at ``_LOG_DEPTH``."""
    positive = values[values > 0]
    low, high = float(values.min()), float(values.max())
    if len(positive) and high / float(positive.min()) > _LOG_ABOVE:
        axes.set_xscale("log")
        # The axis spans more than a decade, so the labels of whole decades are enough.
        axes.xaxis.set_minor_formatter(NullFormatter())
        start = max(float(positive.min()), float(np.median(positive)) / _LOG_DEPTH)
        return np.geomspace(start * 0.999, high * 1.001, _LOG_BINS + 1)
    margin = 1e-3 * (high - low) or 0.05 * abs(high) or 0.5
    return np.linspace(max(low - margin, 0.0), high + margin, _BINS + 1)


def to_svg(figure: Figure, prefix: str, description: str) -> Markup:
    """Return the figure as a bare <svg> element; ``prefix`` makes its ids unique in a page.

    matplotlib escapes the text in it. ``description`` goes into an attribute unescaped: it must not
    contain a name that a user chose.
    """
    buffer = io.StringIO()
    # The page's own background shows, in dark mode too.
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # The page scales the figure; the viewBox alone keeps its aspect ratio.
    for name in ("height", "width"):
        text = re.sub(rf'(<svg[^>]*?) {name}="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{description}"', 1))  # noqa: S704
