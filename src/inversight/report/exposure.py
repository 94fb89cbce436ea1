"""Exposure on the page: the figure of all images, and the table of groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from numpy.typing import NDArray

from inversight.report import words
from inversight.report.contents import ORDER, ReportData
from inversight.report.figures import COLOURS, Floats, new_wide_figure, to_svg
from inversight.report.formatting import finite, is_missing
from inversight.report.ledger import Ledger

GROUP_COLUMNS = words.Words(
    {
        "group": words.Word("Group"),
        **{
            key: words.COLUMNS[key]
            for key in ("exposed", "exposure", ORDER, "exposure_p", "exposure_q")
        },
        "images": words.Word("Private images"),
        "exposed_images": words.Word("Exposed images", "higher"),
        "flagged_images": words.Word("Flagged images", "higher"),
        "nearest_distance": words.Word("Nearest distance", "lower"),
    }
)
"""Columns of the table of groups."""

INTERVALS = {"exposure": ("exposure_low", "exposure_high")}
"""Columns of ledgers that are shown with their interval."""

_ROUND = (
    1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98,
    1.02, 1.05, 1.1, 1.2, 1.4, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1e3, 1e4,
)  # fmt: skip
"""Factors that an axis of exposures may be labelled with."""
_LABELS = 7
"""Most labels on the axis of exposures."""
_LOOKS: dict[bool | None, tuple[str, str, str]] = {
    False: ("not exposed", COLOURS[0], "o"),
    None: ("not judged", COLOURS[6], "x"),
    True: ("exposed", COLOURS[4], "D"),
}
"""Name, colour and marker of private images by their flag; those that are drawn last lie on top."""


def exposure_figure(
    exposure: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    exposed: Sequence[bool | None],
    holdout: Sequence[float],
) -> Markup | None:
    """Return all private images by exposure, largest first, as SVG; None without any exposure.

    exposure, low, high: of each private image, with a 95 % interval, above 0 or NaN. exposed: None
    where an image was not judged. holdout: exposures of holdout images, drawn as a histogram beside
    that of the private images; it may be empty.
    """
    value, below, above = (np.asarray(v, dtype=np.float64) for v in (exposure, low, high))
    kept = np.flatnonzero(np.isfinite(value) & (value > 0))
    if not len(kept):
        return None
    kept = kept[np.argsort(-value[kept], kind="stable")]
    value, below, above = value[kept], below[kept], above[kept]
    flags = [exposed[i] for i in kept.tolist()]
    reference = finite(holdout)
    reference = reference[reference > 0]
    with new_wide_figure() as (figure, axes, side):
        found = np.array([flag is True for flag in flags])
        bottom, top = _range(value, below, above, reference, found)
        place = np.arange(1, len(value) + 1)
        size = float(np.clip(90.0 / np.sqrt(len(value)), 2.0, 6.0))
        for flag, (name, colour, marker) in _LOOKS.items():
            mine = np.array([f is flag for f in flags])
            if not mine.any():
                continue
            first, last = (np.clip(v[mine], bottom / 2.0, 2.0 * top) for v in (below, above))
            _intervals(axes, place[mine], first, last, colour, len(value), flag)
            axes.plot(
                place[mine], value[mine], color=colour, marker=marker, linestyle="none",
                markersize=size + 2.0 if flag else size, markeredgewidth=1.0 if flag is None else 0.0,
                label=f"{name} ({mine.sum()})", zorder=4 if flag else 3,
            )  # fmt: skip
        for one in (axes, side):
            one.axhline(1.0, color="#1f2937", linewidth=1.1, linestyle="--", zorder=2.5)
        axes.set_yscale("log")
        axes.set_ylim(bottom, top)
        axes.yaxis.set_major_locator(FixedLocator(_ticks(bottom, top)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(0.5 - 0.01 * len(value), len(value) + 0.5 + 0.01 * len(value))
        axes.set_xlabel("private images, largest exposure first")
        axes.set_ylabel("exposure (up: nearer because trained on)")
        _histogram(side, value, reference, bottom, top)
        for one in (axes, side):
            one.legend(
                loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False,
                borderaxespad=0.2, fontsize=9.5, handlelength=1.2, columnspacing=1.2,
                markerscale=6.0 / size,
            )  # fmt: skip
        about = (
            f"Exposures of {len(value)} private images, largest first; {found.sum()} are exposed"
        )
        return to_svg(figure, "exposure", about)


def figure_of(data: ReportData) -> Markup | None:
    """Return the figure of a run; None without exposures."""
    samples = data.samples
    if "exposure" not in samples:
        return None

    def column(name: str) -> list[float]:
        return samples.reindex(columns=[name])[name].astype("float64").tolist()

    flags = [
        None if is_missing(flag) else bool(flag)
        for flag in samples.reindex(columns=["exposed"])["exposed"].tolist()
    ]
    holdout: list[float] = []
    if data.exposures is not None:
        rows = data.exposures[data.exposures["role"] == "holdout"]
        holdout = rows["exposure"].astype("float64").tolist()
    value, low, high = (column(name) for name in ("exposure", "exposure_low", "exposure_high"))
    return exposure_figure(value, low, high, flags, holdout)


@dataclass(frozen=True)
class Groups:
    """The table of groups.

    of: how many groups there are. exposed: how many of them are, None without a test. single: private
    images without a group.
    """

    ledger: Ledger
    of: int
    exposed: int | None
    single: int
    sorted: str
    direction: str


def groups_of(samples: pd.DataFrame, tested: pd.DataFrame | None = None) -> Groups | None:
    """Return the private images of each group, the worst group first; None without groups.

    tested: exposure of each group, as in ``exposure_groups.parquet``; without it, the mean of its images.
    """
    if "group" not in samples or not samples["group"].notna().any():
        return None
    rows = samples[samples["group"].notna()]
    rows = rows.assign(group=rows["group"].astype(str))
    grouped = rows.groupby("group", sort=True)
    found = pd.DataFrame(
        {"images": grouped.size(), "nearest_distance": grouped["nearest_distance"].min()}
    )
    for name in ("exposed", "flagged"):
        if name in rows:
            flags = rows.assign(flag=rows[name].fillna(False).astype(bool))
            found[f"{name}_images"] = flags.groupby("group")["flag"].sum()
    worst, rising = "nearest_distance", True
    if tested is not None:
        own = tested.assign(group=tested["group"].astype(str)).set_index("group")
        found = found.join(own.drop(columns=[c for c in own if c in found]))
        worst, rising = ORDER, False
    elif "exposure" in rows:
        logs = rows.assign(log=np.log(rows["exposure"].astype("float64"))).groupby("group")["log"]
        found["exposure"] = np.exp(logs.mean())
        worst, rising = "exposure", False
    found = found.sort_values(worst, ascending=rising, na_position="last", kind="stable")
    found = found.rename_axis("group").reset_index()
    ledger = Ledger.of("groups", found, GROUP_COLUMNS, GROUP_COLUMNS, INTERVALS)
    single = int(samples["group"].isna().sum())
    exposed = int(found["exposed"].fillna(False).astype(bool).sum()) if "exposed" in found else None
    return Groups(
        ledger, len(found), exposed, single, worst, "ascending" if rising else "descending"
    )


def _intervals(
    axes: Axes, place: NDArray[Any], low: Floats, high: Floats, colour: str, images: int, flag: Any
) -> None:
    """Draw one vertical line for each interval that is known, all of them as one path."""
    known = np.isfinite(low) & np.isfinite(high)
    gap = np.full(int(known.sum()), np.nan)
    x = np.column_stack([place[known], place[known], gap]).ravel()
    y = np.column_stack([low[known], high[known], gap]).ravel()
    width = float(np.clip(250.0 / images, 0.25, 1.4))
    axes.plot(
        x, y, color=colour, linewidth=width * (1.5 if flag else 1.0), alpha=0.75 if flag else 0.4
    )


def _range(
    value: Floats, low: Floats, high: Floats, holdout: Floats, exposed: NDArray[np.bool_]
) -> tuple[float, float]:
    """Return the ends of the axis: all exposures, and nearly all ends of intervals within reason."""
    ends = [float(value.min()), float(value.max()), 1.0]
    if len(holdout):
        ends += [float(holdout.min()), float(holdout.max())]
    widest = 2.0 * max(abs(np.log(ends))) + 0.05
    for bounds, share in ((low, 2.0), (high, 98.0)):
        known = np.isfinite(bounds) & (bounds > 0)
        if known.any():
            logs = [np.percentile(np.log(bounds[known]), share), *np.log(bounds[known & exposed])]
            ends += np.exp(np.clip(logs, -widest, widest)).tolist()
    return min(ends) / 1.04, max(ends) * 1.04


def _ticks(bottom: float, top: float) -> list[float]:
    """Return round factors between the ends, among them 1, with room for their labels."""
    apart = np.log(top / bottom) / _LABELS
    found = [1.0]
    # From both ends inwards, since factors near 1 are many.
    for factor in sorted(_ROUND, key=lambda f: -abs(np.log(f))):
        if bottom <= factor <= top and all(abs(np.log(factor / f)) > 0.7 * apart for f in found):
            found.append(factor)
    return sorted(found)


def _histogram(side: Axes, value: Floats, holdout: Floats, bottom: float, top: float) -> None:
    bins = np.geomspace(bottom, top, 31).tolist()
    looks: list[tuple[str, Floats, dict[str, Any]]] = [
        ("private", value, {"color": COLOURS[0], "histtype": "stepfilled", "alpha": 0.35}),
        ("holdout", holdout, {"color": COLOURS[1], "histtype": "step", "linewidth": 1.8}),
    ]
    for name, values, look in looks:
        if len(values):
            weights = np.full(len(values), 100.0 / len(values))
            side.hist(
                values, bins=bins, orientation="horizontal", weights=weights, **look,
                label=f"{name} ({len(values)})",
            )  # fmt: skip
    side.set_xlabel("% of images")
    side.tick_params(labelleft=False)
