"""The report page of a run. The same data gives the same text; no file is read or written."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from inversight.report import words
from inversight.report.attempts import NEW_AUDIT
from inversight.report.budget import budget_figures, missing_points
from inversight.report.contents import ORDER, ExposureItem, ReportData, worst_first
from inversight.report.exposure import INTERVALS, figure_of, groups_of
from inversight.report.figures import distance_histogram, score_histogram
from inversight.report.formatting import NONE, get_number, is_missing, mapping
from inversight.report.ledger import Ledger
from inversight.report.reading import flatten
from inversight.report.templating import html_template
from inversight.report.verdict import verdict

TRUSTED, DOUBTFUL = 0.8, 0.5
"""An evaluator is trusted from the first accuracy on the holdout on, and not below the second."""

_PIXEL_ART = 64
"""Width in pixels up to which images are enlarged without smoothing."""

_SET_MEASURES = ("ddcs_best", "covered", "coverage", "accuracy_top1")
"""Measures by which sets of reconstructions are compared."""


def render(data: ReportData) -> str:
    """Return one self-contained HTML page: no other file, no network, every name in it inert text."""
    samples = worst_first(data.samples)
    by_exposure = ORDER in samples
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
        metrics={key: data.metrics[key] for key in _measures(data)},
        set_measures=_SET_MEASURES,
        # The set that came nearest to most images first.
        sets=sorted(sets.items(), key=lambda one: (-one[1], one[0])),
        ledger=Ledger.of("ledger", samples, order, words.COLUMNS, INTERVALS),
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
        groups=groups_of(samples, data.exposure_groups),
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
