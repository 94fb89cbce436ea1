"""Trade-off of defences as SVG: the target's accuracy against a measure of leakage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from inversight.report import words
from inversight.report.figures import COLOURS, MARKERS, legend, new_figure, to_svg
from inversight.report.formatting import get_interval, get_number, mapping

UNDEFENDED = "none"
"""Name of the target without a defence."""

Span = tuple[float, float]


@dataclass(frozen=True)
class TradeOffPoint:
    """One model in the figure. x, y: means over seeds; spans: 95 % intervals, None without."""

    name: str
    x: float
    y: float
    x_span: Span | None
    y_span: Span | None
    undefended: bool
    recommended: bool


def trade_off_points(
    defences: Sequence[Mapping[str, Any]], measure: str, *, recommended: str | None = None
) -> list[TradeOffPoint]:
    """Return the models that have both accuracy on the holdout and ``measure``.

    For a measure of ``words.RATIOS``, y is its change against the undefended target, which is at 1.
    """
    ratio = measure in words.RATIOS
    points = []
    for defence in defences:
        undefended = defence["name"] == UNDEFENDED
        accuracy = part_of(defence, "measures", "holdout_accuracy")
        leakage = part_of(defence, "changes" if ratio else "measures", measure)
        if ratio and undefended:
            leakage = {"mean": 1.0}
        x, y = get_number(accuracy, "mean"), get_number(leakage, "mean")
        if defence.get("failed") or x is None or y is None:
            continue
        x_span = get_interval(accuracy)
        if x_span is not None:
            # Student's t is unbounded, an accuracy is not.
            x_span = max(0.0, x_span[0]), min(1.0, x_span[1])
        chosen = defence["name"] == recommended
        points.append(
            TradeOffPoint(defence["name"], x, y, x_span, get_interval(leakage), undefended, chosen)
        )
    return points


def part_of(defence: Mapping[str, Any], part: str, key: str) -> Mapping[str, Any]:
    """Return a measure among the ``measures`` or ``changes`` of a defence, empty if it is missing."""
    return mapping(mapping(defence.get(part)).get(key))


def trade_off(points: Sequence[TradeOffPoint], measure: str) -> str | None:
    """Return the figure as SVG; None with fewer than two points, which show no trade-off."""
    if len(points) < 2:
        return None
    word = words.MEASURES[measure]
    way = {"higher": " (down: better)", "lower": " (up: better)"}.get(word.worse, "")
    what = word.name.lower() + (", after / before" if measure in words.RATIOS else "")
    with new_figure(height=3.4 + 0.1 * len(points)) as (figure, axes):
        for row, point in enumerate(points):
            _draw(axes, row, point)
        axes.margins(0.08)
        axes.set_xlabel("accuracy on holdout (right: better)")
        axes.set_ylabel(f"{what}{way}")
        names = legend(axes, ["undefended" if p.undefended else p.name for p in points])
        for text, point in zip(names.get_texts(), points, strict=True):
            text.set_fontweight("bold" if point.recommended else "normal")
        return to_svg(
            figure,
            f"trade-{measure.replace('_', '-')}",
            f"Accuracy on holdout against {what} of {len(points)} models",
        )


def _draw(axes: Axes, row: int, point: TradeOffPoint) -> None:
    turn, which = divmod(row, len(COLOURS))
    colour = COLOURS[which]
    if point.undefended:
        for line, at in ((axes.axvline, point.x), (axes.axhline, point.y)):
            line(at, color=colour, linestyle="--", linewidth=1.0, alpha=0.55, zorder=1)
    for xs, ys, end in (
        (point.x_span, (point.y, point.y), "|"),
        ((point.x, point.x), point.y_span, "_"),
    ):
        if xs is not None and ys is not None:
            axes.plot(xs, ys, color=colour, linewidth=1.3, alpha=0.6, marker=end, zorder=2)
    axes.plot(
        [point.x], [point.y], linestyle="none", color=colour, zorder=3, label=str(row),
        # From the eighth model on, colours are combined with other markers.
        marker=MARKERS[(which + turn) % len(MARKERS)], markersize=9 if point.recommended else 7,
        markerfacecolor=colour if point.recommended else "white", markeredgewidth=1.8,
    )  # fmt: skip
