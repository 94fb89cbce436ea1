"""Puts the page together. Pure: the same data gives the same text, and nothing is read or drawn."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from inversight.report import words
from inversight.report.budget import budget_part
from inversight.report.contents import GalleryItem, ReportData, nearest_first
from inversight.report.figures import distance_histogram, score_histogram
from inversight.report.ledger import headings, rows
from inversight.report.reading import flatten
from inversight.report.templating import environment, own
from inversight.report.verdict import verdict

MOST_ROWS = 2000
"""Rows of the ledger that the page shows; the table file has all."""

TRUSTED, DOUBTFUL = 0.8, 0.5
"""Accuracies on unseen real images from which an evaluator is trusted, and below which not."""

_PIXEL_ART = 64
"""Width in pixels up to which pictures are enlarged without smoothing, to show what is there."""


_SET_MEASURES = ("ddcs_best", "covered", "coverage", "accuracy_top1")
"""Measures by which sets of reconstructions are put side by side."""


@dataclass(frozen=True)
class Metric:
    """A row of the measures' table, in words."""

    key: str
    name: str
    meaning: str
    worse: str
    value: str
    interval: str
    reason: str
    features: str
    extra: str


@dataclass(frozen=True)
class SetRow:
    """One set of reconstructions. images: private images it came nearest to; values: in words."""

    name: str
    images: str
    values: list[str]


@dataclass(frozen=True)
class Trust:
    """How far the evaluator can be trusted. level: ok, doubtful, bad or unknown."""

    level: str
    text: str


def render(data: ReportData) -> str:
    """One self-contained HTML page: no file beside it, no network, every name in it inert text."""
    samples = nearest_first(data.samples)
    shown = samples.head(MOST_ROWS)
    order = _column_order(shown)
    scores = data.samples["ddcs_best"].astype("float64")
    nearest = data.samples["nearest_distance"].astype("float64")
    budget = budget_part(data.budget)
    if budget is not None:
        figures = [(own(picture) or "", caption) for picture, caption in budget.figures]
        budget = replace(budget, figures=figures)
    total = sum(seconds for _, seconds in data.stages)
    return (
        environment()
        .get_template("report.html")
        .render(
            data=data,
            verdict=verdict(data),
            metrics=[_metric(key, found) for key, found in _ordered(data.metrics)],
            set_measures=[words.metric(key).name for key in _SET_MEASURES],
            sets=_sets(data),
            columns=headings(shown, order, words.column),
            explained=[
                (word.name, word.meaning) for word in map(words.column, order) if word.meaning
            ],
            rows=rows(shown, order),
            images=len(samples),
            uncovered=int((scores == 0).sum()),
            unreached=int(nearest.isna().sum()),
            score_figure=own(score_histogram(scores.tolist())),
            distance_figure=own(distance_histogram(nearest.tolist(), data.holdout_nearest)),
            budget=budget,
            gallery=[(item, _picture(item), _is_small(item)) for item in data.gallery],
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
    )


def _ordered(metrics: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    known = [key for key in words.METRICS if key in metrics]
    return [(key, metrics[key]) for key in [*known, *(k for k in metrics if k not in known)]]


def _metric(key: str, found: Mapping[str, Any]) -> Metric:
    word = words.metric(key)
    low, high = found.get("low"), found.get("high")
    bounded = low is not None and high is not None
    missing = words.is_missing(found.get("value"))
    own = {"value", "low", "high", "reason", "features", "within"}
    extra = {name: value for name, value in found.items() if name not in own}
    return Metric(
        key=key,
        name=word.name,
        meaning=word.meaning,
        worse=word.worse,
        value=words.number(found.get("value")),
        interval=f"{words.number(low)} to {words.number(high)}" if bounded else "",
        reason=str(found.get("reason") or "no reason was recorded") if missing else "",
        features=str(found.get("features") or ""),
        extra=", ".join(f"{k.replace('_', ' ')}: {words.number(v)}" for k, v in extra.items()),
    )


def _sets(data: ReportData) -> list[SetRow]:
    """Each set beside the others, the one that came nearest most often first."""
    owner = data.samples["nearest_set"] if "nearest_set" in data.samples else pd.Series(dtype=str)
    counted = {name: int((owner == name).sum()) for name in data.by_set}
    return [
        SetRow(
            name=name,
            images=str(counted[name]),
            values=[
                words.number((data.by_set[name].get(key) or {}).get("value"))
                for key in _SET_MEASURES
            ],
        )
        for name in sorted(counted, key=lambda n: (-counted[n], n))
    ]


def _column_order(samples: pd.DataFrame) -> list[str]:
    known = [key for key in words.COLUMNS if key in samples.columns]
    order = known + [str(key) for key in samples.columns if key not in known]
    # One set of reconstructions needs no column that names it in every row.
    one_set = "nearest_set" in order and samples["nearest_set"].nunique() < 2
    return [key for key in order if not (one_set and key == "nearest_set")]


def _picture(item: GalleryItem) -> tuple[str, str]:
    """Data addresses of the private image and the reconstruction."""
    return _address(item.private_png), _address(item.reconstruction_png)


def _address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _is_small(item: GalleryItem) -> bool:
    # Width: the four bytes behind the signature, the length and the name of the first chunk.
    header = item.private_png[16:20]
    return len(header) == 4 and struct.unpack(">I", header)[0] <= _PIXEL_ART


def _trust(evaluator: Mapping[str, Any]) -> Trust:
    accuracy: Any = evaluator.get("holdout_accuracy")
    if words.is_missing(accuracy):
        return Trust(
            "unknown",
            "How well the evaluator classifies real images it has never seen was not measured "
            "(that needs a holdout). Read accuracy and KNN distance with care.",
        )
    share = float(accuracy)
    found = f"The evaluator classifies {100 * share:.1f} % of the holdout correctly"
    if share >= TRUSTED:
        return Trust("ok", f"{found}, so it can judge which class a reconstruction shows.")
    if share >= DOUBTFUL:
        return Trust(
            "doubtful",
            f"{found}. That is not much: it errs about real images too, so accuracy and KNN "
            "distance are rough.",
        )
    return Trust(
        "bad",
        f"{found}. An evaluator that cannot classify real images cannot judge reconstructions: do "
        "not rely on accuracy and KNN distance.",
    )


def _lines(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not values:
        return []
    return [(name, _plain(value)) for name, value in flatten(dict(values)).items()]


def _plain(value: Any) -> str:
    if value is None:
        return words.NONE
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or words.NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
