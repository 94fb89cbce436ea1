"""The report page of a run. The same data gives the same text; no file is read or written."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from inversight.report import words
from inversight.report.attempts import NEW_AUDIT
from inversight.report.budget import budget_figures, missing_points
from inversight.report.contents import ORDER, ExposureItem, ReportData, worst_first
from inversight.report.exposure import INTERVALS, Groups, figure_of, groups_of
from inversight.report.figures import distance_histogram, score_histogram
from inversight.report.formatting import (
    NONE,
    get_number,
    is_missing,
    mapping,
    number,
    percent,
    with_interval,
)
from inversight.report.ledger import Ledger
from inversight.report.reading import flatten
from inversight.report.templating import html_template
from inversight.report.verdict import Tests, verdict

TRUSTED, DOUBTFUL = 0.8, 0.5
"""An evaluator is trusted from the first accuracy on the holdout on, and not below the second."""

_PIXEL_ART = 64
"""Width in pixels up to which images are enlarged without smoothing."""

MAIN = (
    "id", "label", "group", "exposed", "exposure", "exposure_shrunken", "exposure_q",
    "nearest_distance", "flagged", "kind",
)  # fmt: skip
"""Columns of the ledger that are shown at once, and printed."""

_WORST = 3
"""Images of the first screen."""

_SET_MEASURES = ("ddcs_best", "covered", "coverage", "accuracy_top1")
"""Measures by which sets of reconstructions are compared."""


def render(data: ReportData) -> str:
    """Return one self-contained HTML page: no other file, no network, every name in it inert text."""
    samples = worst_first(data.samples)
    by_exposure = ORDER in samples
    groups = groups_of(samples, data.exposure_groups)
    computed = [k for k in _measures(data) if not is_missing(data.metrics[k].get("value"))]
    order = _column_order(samples)
    scores = samples["ddcs_best"].astype("float64")
    nearest = samples["nearest_distance"].astype("float64")
    owner = samples["nearest_set"] if "nearest_set" in samples else pd.Series(dtype=str)
    sets = {name: int((owner == name).sum()) for name in data.by_set}
    budget = data.budget if data.budget is not None and len(data.budget) else None
    accuracy = get_number(data.evaluator, "holdout_accuracy")
    return html_template("report.html").render(
        data=data,
        words=words,
        verdict=verdict(data),
        tiles=first_numbers(data, groups),
        worst=_worst(data, samples),
        **vars(Tests.of(data.metrics)),
        has_holdout=data.holdout_nearest is not None,
        of_audit=bool(data.settings),
        given=data.settings.get("target") is not None,
        recipe=data.settings.get("recipe"),
        metrics={key: data.metrics[key] for key in computed},
        not_computed={
            key: data.metrics[key].get("reason") or "no reason was recorded"
            for key in _measures(data)
            if key not in computed
        },
        set_measures=_SET_MEASURES,
        # The set that came nearest to most images first.
        sets=sorted(sets.items(), key=lambda one: (-one[1], one[0])),
        ledger=Ledger.of("ledger", samples, order, words.COLUMNS, INTERVALS, MAIN),
        sorted_by=(ORDER, "descending") if by_exposure else ("nearest_distance", "ascending"),
        by_exposure=by_exposure,
        explained=[words.COLUMNS[key] for key in order if words.COLUMNS[key].meaning],
        images=len(samples),
        uncovered=int((scores == 0).sum()),
        unreached=int(nearest.isna().sum()),
        score_figure=score_histogram(scores.tolist()),
        distance_figure=distance_histogram(nearest.tolist(), data.holdout_nearest),
        exposure_figure=figure_of(data),
        exposure_gallery=[
            (item, [*map(_address, _pictures(item))], _is_small(item.private_png))
            for item in data.exposure_gallery
        ],
        pairs=mapping(data.metrics.get("exposure_mean")).get("pairs"),
        reliability=get_number(mapping(data.metrics.get("exposed")), "reliability"),
        groups=groups,
        new_audit=NEW_AUDIT,
        budget=None if budget is None else budget.to_dict("records"),
        budget_figures=[] if budget is None else budget_figures(budget),
        missing_points=[] if budget is None else missing_points(budget),
        gallery=[
            (
                item,
                _address(item.private_png),
                _address(item.reconstruction_png),
                _is_small(item.private_png),
            )
            for item in data.gallery
        ],
        accuracy=accuracy,
        trust=_trust(accuracy),
        total=sum(seconds for _, seconds in data.stages),
        tables={
            title: _lines(getattr(data, title.lower()))
            for title in ("Inputs", "Target", "Evaluator", "Settings", "Versions")
        },
    )


@dataclass(frozen=True)
class Number:
    """A number of the first screen, with its name and a few words on it."""

    name: str
    value: str
    note: str = ""


def first_numbers(data: ReportData, groups: Groups | None) -> list[Number]:
    """Return the test that decides the verdict, what it says of images and groups, and how many there are."""
    tests = Tests.of(data.metrics)
    found = []
    if tests.has_exposure:
        models = f"{tests.mean['models']} shadow models"
        found.append(_of_set("Exposure of the set", tests.mean, models))
    elif tests.of_holdout is not None:
        name, gap = tests.of_holdout
        found.append(_of_set(name.capitalize(), gap, "private against holdout"))
    of_images = {
        "Exposed images": (tests.exposed, "images"),
        "Flagged images": (tests.flagged, "private_images"),
    }
    for name, (one, judged) in of_images.items():
        if get_number(one, "value") is not None:
            note = f"false-discovery rate {percent(one['fdr'])}"
            found.append(Number(name, f"{one['count']} of {one[judged]}", note))
            break
    classes = data.samples["label"].nunique()
    found.append(Number("Private images", f"{len(data.samples):,}", f"in {classes} classes"))
    if groups is not None:
        exposed = "" if groups.exposed is None else f"{groups.exposed} exposed"
        found.append(Number("Groups", f"{groups.of:,}", exposed))
    return found


def _of_set(name: str, test: Mapping[str, Any], note: str) -> Number:
    return Number(name, with_interval(test), f"p = {number(test['p_value'])}, {note}")


@dataclass(frozen=True)
class Worst:
    """One of the worst images: its name, values (None where there is none), and pictures as addresses."""

    id: str
    exposure: float | None
    exposed: bool | None
    distance: float | None
    flagged: bool | None
    pictures: tuple[str, ...]
    small: bool
    of_shadow: bool


def _worst(data: ReportData, samples: pd.DataFrame) -> list[Worst]:
    """Return the first images of ``samples``, each with its picture and a reconstruction's if there are."""
    shadows = {item.id: item for item in data.exposure_gallery}
    nearest = {item.id: item for item in data.gallery}
    found = []
    for one in samples.head(_WORST).to_dict("records"):
        row = {str(key): value for key, value in one.items()}
        name = row["id"]
        pictures: tuple[bytes, ...] = ()
        if name in shadows:
            pictures = (shadows[name].private_png, shadows[name].with_png)
        elif name in nearest:
            pictures = (nearest[name].private_png, nearest[name].reconstruction_png)
        flags = (row.get(key) for key in ("exposed", "flagged"))
        exposed, flagged = (None if is_missing(flag) else bool(flag) for flag in flags)
        found.append(
            Worst(
                name, get_number(row, "exposure"), exposed, get_number(row, "nearest_distance"),
                flagged, tuple(map(_address, pictures)), bool(pictures) and _is_small(pictures[0]),
                name in shadows,
            )
        )  # fmt: skip
    return found


def _measures(data: ReportData) -> list[str]:
    """Return the keys of the metrics in their order on the page."""
    keys = words.in_order(data.metrics)
    # The words begin with exposure, which goes last where it was not measured.
    return sorted(
        keys, key=lambda k: k in words.EXPOSURES and is_missing(data.metrics[k].get("value"))
    )


def _column_order(samples: pd.DataFrame) -> list[str]:
    order = words.in_order(map(str, samples.columns), words.COLUMNS)
    # A single set of reconstructions needs no column that repeats its name.
    if "nearest_set" in order and samples["nearest_set"].nunique() < 2:
        order.remove("nearest_set")
    return order


def _address(png: bytes) -> str:
    """Return an image as a data address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _pictures(item: ExposureItem) -> Sequence[bytes]:
    return item.private_png, item.with_png, item.without_png


def _is_small(png: bytes) -> bool:
    # The width is the four bytes after signature, length and name of the first chunk.
    header = png[16:20]
    return len(header) == 4 and struct.unpack(">I", header)[0] <= _PIXEL_ART


def _trust(accuracy: float | None) -> str:
    """Return how far an evaluator of this accuracy on the holdout can be trusted, in one word."""
    if accuracy is None:
        return "unknown"
    return "ok" if accuracy >= TRUSTED else "doubtful" if accuracy >= DOUBTFUL else "bad"


def _lines(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _plain(value)) for name, value in flatten(dict(values)).items() if name]


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NONE if value is None else str(value)
