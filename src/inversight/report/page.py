"""The report page of a run. The same data gives the same text; no file is read or written."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from inversight.report import words
from inversight.report.budget import budget_section
from inversight.report.contents import GalleryItem, ReportData, nearest_first
from inversight.report.figures import distance_histogram, score_histogram
from inversight.report.formatting import NONE, get_number, interval_text, is_missing, number
from inversight.report.ledger import Ledger
from inversight.report.reading import flatten
from inversight.report.templating import html_template, trusted
from inversight.report.verdict import verdict

TRUSTED, DOUBTFUL = 0.8, 0.5
"""An evaluator is trusted from the first accuracy on the holdout on, and not below the second."""

_PIXEL_ART = 64
"""Width in pixels up to which images are enlarged without smoothing."""

_SET_MEASURES = ("ddcs_best", "covered", "coverage", "accuracy_top1")
"""Measures by which sets of reconstructions are compared."""


@dataclass(frozen=True)
class MetricRow:
    """A row of the table of measures as text."""

    key: str
    word: words.Word
    value: str
    interval: str
    reason: str
    features: str
    extra: str


@dataclass(frozen=True)
class SetRow:
    """A set of reconstructions as text. images: number of private images that it came nearest to."""

    name: str
    images: int
    values: list[str]


@dataclass(frozen=True)
class Trust:
    """How far the evaluator can be trusted. level: ok, doubtful, bad or unknown."""

    level: str
    text: str


def render(data: ReportData) -> str:
    """Return one self-contained HTML page: no other file, no network, every name in it inert text."""
    samples = nearest_first(data.samples)
    order = _column_order(samples)
    scores = data.samples["ddcs_best"].astype("float64")
    nearest = data.samples["nearest_distance"].astype("float64")
    budget = budget_section(data.budget)
    if budget is not None:
        budget = replace(budget, figures=[(trusted(svg), text) for svg, text in budget.figures])
    total = sum(seconds for _, seconds in data.stages)
    meanings = [words.COLUMNS[key] for key in order if words.COLUMNS[key].meaning]
    return html_template("report.html").render(
        data=data,
        verdict=verdict(data),
        metrics=[_metric_row(key, data.metrics[key]) for key in words.in_order(data.metrics)],
        set_measures=[words.METRICS[key].name for key in _SET_MEASURES],
        sets=_sets(data),
        ledger=Ledger.of("ledger", samples, order, words.COLUMNS),
        explained=[(word.name, word.meaning) for word in meanings],
        images=len(samples),
        uncovered=int((scores == 0).sum()),
        unreached=int(nearest.isna().sum()),
        score_figure=_figure(score_histogram(scores.tolist())),
        distance_figure=_figure(distance_histogram(nearest.tolist(), data.holdout_nearest)),
        budget=budget,
        gallery=[
            (item, _address(item.private_png), _address(item.reconstruction_png), _is_small(item))
            for item in data.gallery
        ],
        trust=_trust(data.evaluator),
        stages=[
            (name, seconds, seconds / total if total else 0.0) for name, seconds in data.stages
        ],
        tables={
            "Inputs": _lines(data.inputs),
            "Target": _lines(data.target),
            "Evaluator": _lines(data.evaluator),
            "Settings": _lines(data.settings),
            "Versions": _lines(data.versions),
        },
    )


def _figure(svg: str | None) -> str | None:
    return None if svg is None else trusted(svg)


def _metric_row(key: str, found: Mapping[str, Any]) -> MetricRow:
    missing = is_missing(found.get("value"))
    named = {"value", "low", "high", "reason", "features", "within"}
    extra = {name: value for name, value in found.items() if name not in named}
    return MetricRow(
        key=key,
        word=words.METRICS[key],
        value=number(found.get("value")),
        interval=interval_text(found),
        reason=str(found.get("reason") or "no reason was recorded") if missing else "",
        features=str(found.get("features") or ""),
        extra=", ".join(f"{k.replace('_', ' ')}: {number(v)}" for k, v in extra.items()),
    )


def _sets(data: ReportData) -> list[SetRow]:
    """Return each set of reconstructions, the one that came nearest most often first."""
    owner = data.samples["nearest_set"] if "nearest_set" in data.samples else pd.Series(dtype=str)
    rows = [
        SetRow(
            name=name,
            images=int((owner == name).sum()),
            values=[number(get_number(metrics.get(key), "value")) for key in _SET_MEASURES],
        )
        for name, metrics in data.by_set.items()
    ]
    return sorted(rows, key=lambda row: (-row.images, row.name))


def _column_order(samples: pd.DataFrame) -> list[str]:
    order = words.in_order(map(str, samples.columns), words.COLUMNS)
    # A single set of reconstructions needs no column that repeats its name.
    if "nearest_set" in order and samples["nearest_set"].nunique() < 2:
        order.remove("nearest_set")
    return order


def _address(png: bytes) -> str:
    """Return an image as a data address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _is_small(item: GalleryItem) -> bool:
    # The width is the four bytes after signature, length and name of the first chunk.
    header = item.private_png[16:20]
    return len(header) == 4 and struct.unpack(">I", header)[0] <= _PIXEL_ART


def _trust(evaluator: Mapping[str, Any]) -> Trust:
    accuracy = get_number(evaluator, "holdout_accuracy")
    if accuracy is None:
        return Trust(
            "unknown",
            "The evaluator's accuracy on real images that it has never seen was not measured (this "
            "needs a holdout). Read accuracy and KNN distance with care.",
        )
    found = f"The evaluator classifies {100 * accuracy:.1f} % of the holdout correctly"
    if accuracy >= TRUSTED:
        return Trust("ok", f"{found}, so it can judge which class a reconstruction shows.")
    if accuracy >= DOUBTFUL:
        return Trust(
            "doubtful",
            f"{found}. It also errs on real images, so accuracy and KNN distance are rough.",
        )
    return Trust(
        "bad",
        f"{found}. An evaluator that cannot classify real images cannot judge reconstructions: do not "
        "rely on accuracy and KNN distance.",
    )


def _lines(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _plain(value)) for name, value in flatten(dict(values)).items() if name]


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NONE if value is None else str(value)
