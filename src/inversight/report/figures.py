"""Histograms as SVG to be put into the page: same data, same bytes, nothing outside needed."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from inversight.report.words import number

Floats = NDArray[np.float64]

STYLE = {
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
# Told apart by people of any colour vision, and by fill against outline in print.
_PRIVATE, _HOLDOUT = "#2563a8", "#c2570c"
_BINS, _LOG_BINS = 24, 40
_LOG_ABOVE = 50.0
"""Ratio of the largest to the smallest value from which a logarithmic axis shows more."""
_LOG_DEPTH = 1000.0
"""A logarithmic axis ends at the median divided by this; what is below is in its first bar."""


def score_histogram(scores: Sequence[float]) -> str | None:
    """Distribution of the per-image scores above 0 as SVG; None if there is none."""
    values = _finite(scores)
    values = values[values > 0]
    if not len(values):
        return None
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = _axes()
        bins = _bins(values, axes)
        axes.hist(
            np.maximum(values, bins[0]),
            bins=bins.tolist(),
            color=_PRIVATE,
            alpha=0.85,
            edgecolor="white",
            linewidth=0.5,
        )
        axes.set_xlabel("DDCS best of an image (right: nearer)")
        axes.set_ylabel("private images")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        return to_svg(figure, "scores", f"Histogram of the scores of {len(values)} images above 0")


def distance_histogram(private: Sequence[float], holdout: Sequence[float] | None) -> str | None:
    """Distribution of the nearest distances as SVG, the holdout's over it; None without any."""
    ours = _finite(private)
    theirs = _finite(holdout if holdout is not None else ())
    if not len(ours):
        return None
    with matplotlib.style.context(["default", STYLE]):
        figure, axes = _axes()
        bins = _bins(np.concatenate([ours, theirs]), axes).tolist()
        floor = bins[0]
        for values, name, colour, look in (
            (ours, "private", _PRIVATE, {"histtype": "stepfilled", "alpha": 0.35}),
            (theirs, "holdout", _HOLDOUT, {"histtype": "step", "linewidth": 1.8}),
        ):
            if not len(values):
                continue
            middle = float(np.median(values))
            axes.hist(
                np.maximum(values, floor),
                bins=bins,
                weights=np.full(len(values), 100.0 / len(values)),
                color=colour,
                label=f"{name} ({len(values)}), median {number(middle)}",
                **look,  # type: ignore[arg-type]
            )
            axes.axvline(max(middle, floor), color=colour, linestyle="--", linewidth=1.4)
        clipped = bool((np.concatenate([ours, theirs]) < floor).any())
        first = "; first bar: all below it too" if clipped else ""
        axes.set_xlabel(f"nearest distance (left: nearer{first})")
        axes.set_ylabel("% of images")
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, borderaxespad=0.2)
        names = "private and holdout" if len(theirs) else "private"
        return to_svg(figure, "distances", f"Histogram of the nearest distances of {names} images")


def _finite(values: Sequence[float]) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.4, 3.2), layout="constrained")
    return figure, figure.subplots()


def _bins(values: Floats, axes: Axes) -> Floats:
    """Edges; logarithmic where the range is wide, and then not down to 0 (see ``_LOG_DEPTH``)."""
    positive = values[values > 0]
    low, high = float(values.min()), float(values.max())
    if len(positive) and high / float(positive.min()) > _LOG_ABOVE:
        axes.set_xscale("log")
        # More than a decade is shown, so the labels of whole decades are enough.
        axes.xaxis.set_minor_formatter(NullFormatter())
        start = max(float(positive.min()), float(np.median(positive)) / _LOG_DEPTH)
        return np.geomspace(start * 0.999, high * 1.001, _LOG_BINS + 1)
    margin = 1e-3 * (high - low) or 0.05 * abs(high) or 0.5
    return np.linspace(max(low - margin, 0.0), high + margin, _BINS + 1)


def to_svg(figure: Figure, prefix: str, description: str) -> str:
    """The bare <svg> element, its ids made the page's only ones of that name.

    ``description`` goes into an attribute as it is: no name that a user chose may be in it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # The page scales the picture; the viewBox alone keeps its shape.
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
