"""Two runs side by side: measures, settings, and the images whose distance changed most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from inversight.core.errors import RunError
from inversight.report import words
from inversight.report.contents import REQUIRED
from inversight.report.formatting import (
    NONE,
    get_interval,
    get_number,
    mapping,
    number,
    plain_table,
    plain_text,
    signed,
    visible,
)
from inversight.report.reading import flatten, read_mapping, read_table

_PRESENTATION = ("out", "resume", "fail_on", "hash_ids", "images", "log", "memory")
"""Settings that change how results are presented, not the results."""

_TRAINED = {"public": ("public", "public_training"), "evaluator": ("private", "evaluator_training")}
"""Embeddings that a run trains itself: the input and the settings that determine them."""

_EFFECTS = {
    "embedding": "distances and DDCS are not comparable",
    "features": "coverage, density, precision, recall and the Frechet distance are not comparable",
    "evaluator": "KNN distances are not comparable and accuracies only roughly",
}
"""What two runs cannot be compared in if they differ in one of these."""

_SHADOW_EFFECTS = {
    "recipe": "exposure is that of other models",
    "attack": "exposure is to another attack",
    "prior": "exposure is to another attack",
    "train_images": "exposure is not comparable: models trained on less memorise more",
    "models": "the one with more finds more exposed images, whatever the target leaks",
}
"""What a difference between the shadow models of two runs means, by key of ``shadows`` in run.json."""

_OVERLAP = {None: "", True: "overlap", False: "apart"}


@dataclass(frozen=True)
class MetricChange:
    """One measure in both runs; None where a run has no value.

    difference: b - a. overlap: whether the 95 % intervals overlap, None if one is missing. note:
    why there is no value or no comparison, else "".
    """

    key: str
    a: float | None
    b: float | None
    difference: float | None
    overlap: bool | None
    note: str


@dataclass(frozen=True)
class Comparison:
    """Run a compared with run b; every difference is b - a.

    metrics: of either run. settings: (dotted name, a, b) where they differ. samples: images of both
    runs, the greatest change of nearest distance first, then of score, with columns id, label,
    distance_a, distance_b, distance_change, score_a, score_b, score_change; None where the runs'
    distances are not of one kind. warnings: why numbers may not be comparable.
    """

    run_a: str
    run_b: str
    metrics: tuple[MetricChange, ...]
    settings: tuple[tuple[str, str, str], ...]
    samples: pd.DataFrame | None
    warnings: tuple[str, ...]


def compare(run_a: Path, run_b: Path) -> Comparison:
    """Compare two finished runs.

    Raises:
        RunError: one of them is not a run folder, not finished, or damaged.
    """
    manifest_a, manifest_b = _finished(run_a), _finished(run_b)
    metrics_a, metrics_b = read_mapping(run_a, "metrics.json"), read_mapping(run_b, "metrics.json")
    same_distance, warnings = _comparable(manifest_a, manifest_b)
    warnings += _budgets(metrics_a, metrics_b)
    warnings += _shadows(manifest_a, manifest_b)
    samples_a = read_table(run_a, "samples.parquet", REQUIRED)
    samples_b = read_table(run_b, "samples.parquet", REQUIRED)
    samples = _samples(samples_a, samples_b) if same_distance else None
    if samples is not None and len(samples) < max(len(samples_a), len(samples_b)):
        warnings.append(
            f"only {len(samples)} images have a name in both runs ({len(samples_a)} and "
            f"{len(samples_b)} images); the others are left out of the list of images"
        )
    return Comparison(
        run_a=str(run_a),
        run_b=str(run_b),
        metrics=tuple(
            _metric(key, metrics_a.get(key), metrics_b.get(key))
            for key in words.in_order({**metrics_a, **metrics_b})
        ),
        settings=_settings(manifest_a, manifest_b),
        samples=samples,
        warnings=tuple(warnings),
    )


def _finished(run: Path) -> dict[str, Any]:
    manifest = read_mapping(run, "run.json")
    if manifest.get("finished") is False:
        raise RunError(f"{run}: the run is not finished; continue it with --resume {run}")
    return manifest


def _comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[bool, list[str]]:
    """Return whether the distances of both runs are comparable, and warnings on what differs."""
    warnings = []
    if _fingerprint(a, "private") != _fingerprint(b, "private"):
        warnings.append(
            "the private images differ: DDCS, covered and the other means are not comparable, "
            "except for images that are in both"
        )
    apart = {}
    for role, effect in _EFFECTS.items():
        name_a, name_b = (role if role == "evaluator" else run.get(role) for run in (a, b))
        apart[role] = f"{name_a} and {name_b}" if name_a != name_b else _trained_apart(name_a, a, b)
        if apart[role]:
            warnings.append(f"{role}: not the same in both runs ({apart[role]}), so that {effect}")
    return not apart["embedding"], warnings


def _trained_apart(name: Any, a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Return why two networks of one name, trained by each run, differ; "" if they do not."""
    if name not in _TRAINED:
        return ""
    data, recipe = _TRAINED[name]
    settings_a, settings_b = a.get("settings") or {}, b.get("settings") or {}
    if name == "evaluator" and (settings_a.get("evaluator") or settings_b.get("evaluator")):
        given = settings_a.get("evaluator"), settings_b.get("evaluator")
        return (
            "" if given[0] == given[1] else f"{given[0] or 'trained'} and {given[1] or 'trained'}"
        )
    if _fingerprint(a, data) != _fingerprint(b, data):
        return f"trained on other {data} images"
    if settings_a.get(recipe) != settings_b.get(recipe):
        return f"other {recipe}"
    if a.get("seed") != b.get("seed"):
        return f"trained with seeds {a.get('seed')} and {b.get('seed')}"
    return ""


def _fingerprint(manifest: Mapping[str, Any], name: str) -> Any:
    return ((manifest.get("inputs") or {}).get(name) or {}).get("fingerprint")


def _budgets(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    counts = [(m.get("ddcs_best") or {}).get("reconstructions") for m in (a, b)]
    if counts[0] == counts[1] or None in counts:
        return []
    return [
        f"the numbers of reconstructions differ ({counts[0]} and {counts[1]}): with more, "
        "reconstructions come nearer and cover more, whatever the target leaks"
    ]


def _shadows(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return what differs between the shadow models of two runs that both have some."""
    models = mapping(a.get("shadows")), mapping(b.get("shadows"))
    if not all(models):
        return []
    warnings = []
    for name, effect in _SHADOW_EFFECTS.items():
        values = [one.get(name) for one in models]
        if values[0] != values[1] and None not in values:
            shown = f"{number(values[0])} and {number(values[1])}"
            warnings.append(
                f"shadow models: {name.replace('_', ' ')} differ ({shown}), so that {effect}"
            )
    return warnings


def _metric(key: str, a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> MetricChange:
    value_a, value_b = get_number(a, "value"), get_number(b, "value")
    interval_a, interval_b = get_interval(a), get_interval(b)
    overlap = None
    if interval_a and interval_b:
        overlap = interval_a[0] <= interval_b[1] and interval_b[0] <= interval_a[1]
    missing: dict[str, list[str]] = {}
    for name, found, value in (("a", a, value_a), ("b", b, value_b)):
        if value is None:
            reason = "not in this run" if found is None else str(found.get("reason") or "no value")
            missing.setdefault(reason, []).append(name)
    notes = [f"{' and '.join(names)}: {reason}" for reason, names in missing.items()]
    if a is not None and b is not None and a.get("features") != b.get("features"):
        notes.append(f"on features {a.get('features')} and {b.get('features')}")
    difference = None if value_a is None or value_b is None else value_b - value_a
    return MetricChange(key, value_a, value_b, difference, overlap, "; ".join(notes))


def _settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    flat_a, flat_b = flatten(_setting_values(a)), flatten(_setting_values(b))
    return tuple(
        (name, str(flat_a.get(name, NONE)), str(flat_b.get(name, NONE)))
        for name in {**flat_a, **flat_b}
        if name not in _PRESENTATION and flat_a.get(name, "") != flat_b.get(name, "")
    )


def _setting_values(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings and the other values of the manifest that determine results."""
    other = {k: manifest[k] for k in ("version", "seed", "device") if k in manifest}
    threads = {k: manifest[k] for k in ("threads", "stage_threads") if manifest.get(k)}
    return {**other, **(manifest.get("settings") or {}), **threads}


def _samples(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    columns = {"nearest_distance": "distance", "ddcs_best": "score"}
    both = (
        a[list(REQUIRED)]
        .rename(columns=columns)
        .merge(b[["id", *columns]].rename(columns=columns), on="id", suffixes=("_a", "_b"))
    )
    for name in columns.values():
        both[f"{name}_change"] = both[f"{name}_b"] - both[f"{name}_a"]
    names = [f"{name}_{side}" for name in columns.values() for side in ("a", "b", "change")]
    return both[["id", "label", *names]].sort_values(
        ["distance_change", "score_change", "id"], ascending=[False, False, True],
        key=lambda column: column if column.name == "id" else column.abs(), ignore_index=True,
    )  # fmt: skip


def render_text(comparison: Comparison, *, images: int = 10, width: int = 110) -> str:
    """Return the comparison as plain text, ``width`` columns wide at most, for a terminal.

    images: number of images to list. Characters that a terminal would interpret are written as
    escapes.
    """
    warnings = [f"warning: {visible(warning)}" for warning in comparison.warnings]
    measures = [
        (visible(m.key), number(m.a), number(m.b), signed(m.difference), words.METRICS[m.key].worse,
         _OVERLAP[m.overlap], visible(m.note)) for m in comparison.metrics
    ]  # fmt: skip
    headings = ("measure", "a", "b", "b - a", "worse if", "intervals", "")
    settings = [map(visible, row) for row in comparison.settings]
    return plain_text(
        [
            f"a: {visible(comparison.run_a)}\nb: {visible(comparison.run_b)}\n",
            *([*warnings, ""] if warnings else ()),
            plain_table(headings, measures, numeric=(1, 2, 3)),
            "Intervals that overlap do not show that two runs are equal.\n",
            plain_table(("setting that differs", "a", "b"), settings)
            if settings
            else "No setting differs.",
            "",
            *_changed_images(comparison.samples, images),
        ],
        width,
    )


def _changed_images(samples: pd.DataFrame | None, images: int) -> list[str | Table]:
    if samples is None:
        return ["Images are not compared: their distances are not of one kind."]
    if samples.empty:
        return ["No image is in both runs."]
    changes = ("distance a", "distance b", "b - a", "score a", "score b", "b - a")
    rows = [
        (visible(image), *(signed(v) if i % 3 == 2 else number(v) for i, v in enumerate(numbers)))
        for image, _, *numbers in samples.head(images).itertuples(index=False)
    ]
    return [
        plain_table(("image that changed most", *changes), rows, numeric=range(1, 7)),
        "A smaller nearest distance and a higher score mean a nearer reconstruction.",
    ]
