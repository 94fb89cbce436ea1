"""The trade-off of defences as SVG: what the target is still good for against what leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from inversight.report import defence_words
from inversight.report.figures import STYLE, to_svg
from inversight.report.words import visible

Span = tuple[float, float]

_DEFENCE, _PLAIN = "#2563a8", "#c2570c"
"""The colours of a defence and of the undefended target."""
_LONGEST = 22
"""Letters of a name beside its point."""
_PLACES = (
    (8, 5), (8, -5), (-8, 5), (-8, -5), (0, 11), (0, -11), (12, 14), (12, -14), (-12, 14),
    (-12, -14), (0, 24), (0, -24), (24, 24), (24, -24), (-24, 24), (-24, -24), (34, 4), (-34, 4),
    (0, 38), (0, -38), (40, 30), (40, -30), (-40, 30), (-40, -30), (62, 18), (62, -18), (-62, 18),
    (-62, -18), (0, 52), (0, -52), (50, 46), (50, -46), (-50, 46), (-50, -46),
)  # fmt: skip
"""Where a name may stand beside its point, in points, the first that is free."""
_FAR = 11
"""Points of distance from which a line leads from the name to its point."""


@dataclass(frozen=True)
class Dot:
    """A defence in the plane. x, y: means over seeds; spans: 95 % intervals, None without."""

    name: str
    x: float
    y: float
    x_span: Span | None
    y_span: Span | None
    undefended: bool
    chosen: bool


def dots(
    defences: Sequence[Mapping[str, Any]], measure: str, *, changes: bool, chosen: str | None
) -> list[Dot]:
    """Those that have both accuracy on the holdout and ``measure``.

    changes: the measure's change against the undefended target, which stands at no change.
    """
    found = []
    for defence in defences:
        if defence.get("failed"):
            continue
        undefended = defence["name"] == "none"
        x = (defence.get("measures") or {}).get("holdout_accuracy")
        y = (defence.get("changes" if changes else "measures") or {}).get(measure)
        if changes and undefended:
            y = {"mean": 1.0 if measure in defence_words.RATIOS else 0.0}
        x_value, y_value = defence_words.value(x), defence_words.value(y)
        if x_value is None or y_value is None:
            continue
        x_span, y_span = defence_words.interval(x), defence_words.interval(y)
        if x_span is not None:
            # Student's t knows no bounds; where an accuracy cannot be, the picture need not go.
            x_span = max(0.0, x_span[0]), min(1.0, x_span[1])
        is_chosen = defence["name"] == chosen
        found.append(Dot(defence["name"], x_value, y_value, x_span, y_span, undefended, is_chosen))
    return found


def trade_off(found: Sequence[Dot], measure: str, *, changes: bool) -> str | None:
    """One panel as SVG; None with fewer than two dots, between which there is nothing to trade."""
    if len(found) < 2:
        return None
    word = defence_words.measure(measure)
    # The words module says which way is worse; on the page the good way is a direction.
    way = {"higher": "down", "lower": "up"}.get(word.worse, "")
    better = f" ({way}: better)" if way else ""
    what = f"{word.name.lower()}, after / before" if changes else word.name.lower()
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(5.4, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.margins(0.16, 0.14)
        for dot in found:
            _draw(axes, dot)
        axes.set_xlabel("accuracy on holdout (right: better)")
        axes.set_ylabel(f"{what}{better}")
        _label(figure, axes, found)
        # Names are kept out of the description: it goes into an attribute unescaped.
        return to_svg(
            figure,
            f"trade-{measure.replace('_', '-')}",
            f"Accuracy on holdout against {what} of {len(found)} models",
        )


def _draw(axes: Axes, dot: Dot) -> None:
    colour = _PLAIN if dot.undefended else _DEFENCE
    if dot.undefended:
        for line, at in ((axes.axvline, dot.x), (axes.axhline, dot.y)):
            line(at, color=_PLAIN, linestyle="--", linewidth=1.0, alpha=0.55, zorder=1)
    for span, axis in ((dot.x_span, "x"), (dot.y_span, "y")):
        if span is None:
            continue
        ends = ([*span], [dot.y, dot.y]) if axis == "x" else ([dot.x, dot.x], [*span])
        marker = "|" if axis == "x" else "_"
        axes.plot(
            *ends, color=colour, linewidth=1.3, alpha=0.6, marker=marker, markersize=6, zorder=2
        )
    axes.plot(
        [dot.x],
        [dot.y],
        linestyle="none",
        marker="D" if dot.chosen else "o",
        markersize=8 if dot.chosen else 7,
        markerfacecolor="white" if dot.undefended else colour,
        markeredgecolor=colour,
        markeredgewidth=1.8,
        zorder=3,
    )


def _label(figure: Figure, axes: Axes, found: Sequence[Dot]) -> None:
    """Write each name in the first place beside its point that is free of names, dots and bars."""
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    scale = figure.dpi / 72.0
    taken = [box for dot in found for box in _boxes(axes, dot, 5.0 * scale)]
    # Those with the most neighbours first: they have the fewest free places.
    for dot in sorted(found, key=lambda d: (-_crowd(axes, d, found), d.name)):
        best: tuple[float, Annotation, Bbox] | None = None
        for rank, place in enumerate(_PLACES):
            text = _annotate(axes, dot, place)
            text.update_positions(renderer)
            # The name alone: the annotation's own extent has its line in it.
            box = Text.get_window_extent(text, renderer).padded(2.5 * scale)
            outside = box.width * box.height - _shared(box, frame)
            cost = outside * 3.0 + sum(_shared(box, other) for other in taken) + 0.05 * rank
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = cost, text, box
            else:
                text.remove()
            if best[0] < 0.05 * len(_PLACES):
                break
        if best is not None:
            taken.append(best[2])


def _annotate(axes: Axes, dot: Dot, place: tuple[float, float]) -> Annotation:
    right, up = place
    name = "undefended" if dot.undefended else visible(dot.name)
    name = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
    far = max(abs(right), abs(up)) >= _FAR
    return axes.annotate(
        name,
        (dot.x, dot.y),
        xytext=place,
        textcoords="offset points",
        ha="center" if right == 0 else "left" if right > 0 else "right",
        va="center" if abs(up) < 5 else "bottom" if up > 0 else "top",
        fontsize=9.5,
        color=_PLAIN if dot.undefended else "#1f2937",
        fontweight="bold" if dot.chosen else "normal",
        # A name is not mathematics, whatever signs are in it.
        parse_math=False,
        in_layout=False,
        arrowprops={
            "arrowstyle": "-",
            "color": "#9ca3af",
            "linewidth": 0.8,
            "shrinkA": 0,
            "shrinkB": 4,
        }
        if far
        else None,
        zorder=4,
    )


def _boxes(axes: Axes, dot: Dot, half: float) -> list[Bbox]:
    """What a dot and its bars take of the picture, in pixels."""
    x, y = axes.transData.transform((dot.x, dot.y))
    found = [Bbox.from_extents(x - half, y - half, x + half, y + half)]
    thin = half / 3.0
    if dot.x_span is not None:
        (low, _), (high, _) = (axes.transData.transform((end, dot.y)) for end in dot.x_span)
        found.append(Bbox.from_extents(low, y - thin, high, y + thin))
    if dot.y_span is not None:
        (_, low), (_, high) = (axes.transData.transform((dot.x, end)) for end in dot.y_span)
        found.append(Bbox.from_extents(x - thin, low, x + thin, high))
    return found


def _crowd(axes: Axes, dot: Dot, found: Sequence[Dot]) -> int:
    """How many other dots lie within an inch or so."""
    x, y = axes.transData.transform((dot.x, dot.y))
    near = 0
    for other in found:
        u, v = axes.transData.transform((other.x, other.y))
        near += other is not dot and abs(u - x) < 80 and abs(v - y) < 40
    return near


def _shared(a: Bbox, b: Bbox) -> float:
    """Square pixels that two boxes share."""
    both = Bbox.intersection(a, b)
    return 0.0 if both is None else float(both.width * both.height)
