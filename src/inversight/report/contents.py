"""The data of a report, read from a run folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from inversight.core.run import atomic_file
from inversight.report.attempts import attempts, training_of
from inversight.report.formatting import duration, mapping
from inversight.report.reading import counts_of, counts_text, read_mapping, read_table

T = TypeVar("T")

REQUIRED = ("id", "label", "ddcs_best", "nearest_distance")
"""Columns that ``samples`` must have."""

BUDGET_COLUMNS = (
    "attack", "budget", "queries", "reconstructions", "covered", "ddcs_best", "reason",
)  # fmt: skip
"""Columns that ``budget`` must have."""

ORDER = "exposure_shrunken"
"""Column by which the most exposed images come first: the largest raw exposures are overestimates."""

EXPOSURE_COLUMNS = ("id", "role", "exposure")
"""Columns that ``exposures`` must have."""

GALLERY, EXPOSURE_GALLERY = "gallery.parquet", "exposure_gallery.parquet"
"""Files of a run with the pictures of its report; only with --images blurred or full."""

HIDDEN = "(hidden)"
"""Replaces a path in a run with --hash-ids."""
_IMAGES = ("private", "holdout", "public", "data")
"""Settings that are paths of images, FILE:SPLIT for a split of a file."""
_PATHS = (*_IMAGES, "group_by", "classes", "target", "evaluator", "prior", "recipe")
"""Settings that can be paths; an expression that names groups may hold names."""
_NOT_PATHS = ("embedded digits", "style", "trained by this audit")
"""Values of path settings that need no redaction."""


@dataclass(frozen=True)
class GalleryItem:
    """A private image beside the reconstruction nearest to it, as PNG files in memory.

    score: its ``ddcs_best``. nearest_distance: to the reconstruction that is shown.
    """

    id: str
    label: str
    score: float
    nearest_distance: float
    private_png: bytes
    reconstruction_png: bytes


@dataclass(frozen=True)
class ExposureItem:
    """A private image beside its nearest reconstructions from two shadow models, as PNG files in memory.

    The models are one pair, of which one was trained on the image and the other was not: the pair whose
    difference of log distances is the median over all pairs.

    exposure, low, high, p: the image's ``exposure`` with its 95 % interval and ``exposure_p``; low and
    high may be None. with_png, with_distance: of the model trained on the image; without_png,
    without_distance: of the other one.
    """

    id: str
    label: str
    exposure: float
    low: float | None
    high: float | None
    p: float | None
    private_png: bytes
    with_png: bytes
    without_png: bytes
    with_distance: float
    without_distance: float


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """The data of a report page, see :func:`inversight.report.render`.

    title: heading of the page.
    metrics: as in ``metrics.json``, by key, each with ``value``, ``low``, ``high`` and, where the
        value is None, ``reason``.
    samples: as in ``samples.parquet``, one row for each private image; at least ``REQUIRED``.
    by_set: the same for each set of reconstructions alone; empty if there is one set.
    split: what private, holdout and public are, in words.
    facts: short facts about the run by name (created, preset, seed, device, ...).
    embedding: name of the embedding whose squared distance is the distance.
    holdout_nearest: distance of each holdout image to the nearest reconstruction of its class,
        NaN where the class has none; None without a holdout.
    budget: as in ``budget.parquet``, a row for each attack and number of queries; None without.
    shadows: facts about the shadow models, as ``shadows`` in ``run.json``; empty without any.
    exposures: as in ``exposure.parquet``, a row for each private and holdout image; None without.
    exposure_groups: as in ``exposure_groups.parquet``, a row for each group; None without.
    gallery: pairs to show, the nearest first; empty if ``images`` is "none".
    exposure_gallery: the most exposed images, the most exposed first; empty if ``images`` is "none".
    images: whether images may be shown: "none", "blurred" (the items are already), "full".
    evaluator: facts about the evaluator; ``holdout_accuracy`` in [0, 1] or None decides its trust.
    target, inputs, settings, versions: facts in mappings, which may be nested.
    attempts: rows of access, attack and budget, as :func:`inversight.report.attempts.attempts` makes them.
    training: facts about how the target was trained, by name.
    stages: (name, seconds), in the order they ran.
    warnings, notes: one sentence each.

    Raises:
        ValueError: a gallery although ``images`` is "none", or a required column is missing.
    """

    title: str
    metrics: Mapping[str, Mapping[str, Any]]
    samples: pd.DataFrame
    by_set: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    split: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    embedding: str = ""
    holdout_nearest: Sequence[float] | None = None
    budget: pd.DataFrame | None = None
    shadows: Mapping[str, Any] = field(default_factory=dict)
    exposures: pd.DataFrame | None = None
    exposure_groups: pd.DataFrame | None = None
    gallery: Sequence[GalleryItem] = ()
    exposure_gallery: Sequence[ExposureItem] = ()
    images: str = "none"
    evaluator: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    attempts: Sequence[Mapping[str, Any]] = ()
    training: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[tuple[str, float]] = ()
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.images == "none" and (self.gallery or self.exposure_gallery):
            raise ValueError("images is 'none', so that no picture may go into the report")
        missing = [column for column in REQUIRED if column not in self.samples.columns]
        if missing:
            raise ValueError(f"samples lack the column {missing[0]}")


def write_gallery(file: Path, items: Sequence[GalleryItem] | Sequence[ExposureItem]) -> None:
    """Write the pictures of a report to ``file``, so that it can be written again; remove it without any."""
    if items:
        with atomic_file(file) as partial:
            pd.DataFrame([vars(item) for item in items]).to_parquet(partial, index=False)
    else:
        file.unlink(missing_ok=True)


def _read_gallery(run: Path, name: str, kind: type[T]) -> tuple[T, ...]:
    if not (run / name).is_file():
        return ()
    columns = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    rows = read_table(run, name, columns)[columns].itertuples(index=False)
    return tuple(kind(*row) for row in rows)


def load_report_data(run: Path, *, title: str | None = None) -> ReportData:
    """Read ``run.json``, ``metrics.json`` and ``samples.parquet`` of a run, and where they exist
    ``metrics_by_set.json``, ``holdout.parquet``, ``budget.parquet``, ``exposure.parquet``,
    ``exposure_groups.parquet`` and, unless the run says images: none, ``GALLERY`` and
    ``EXPOSURE_GALLERY``.

    Of a run with --hash-ids, the paths of inputs, models and priors are left out.

    The run need not be finished, since the report is its last stage. Keys of ``run.json`` that are
    used, all optional: version, created, preset, seed, device, threads, embedding, features,
    guidance_embedding, images, split, title, settings, inputs, target, evaluator, versions, stages,
    shadows, warnings, notes.

    Raises:
        RunError: not a run folder, a table is not written yet, or a file is damaged.
    """
    manifest = read_mapping(run, "run.json")
    if mapping(manifest.get("settings")).get("hash_ids"):
        manifest = without_paths(manifest)
    holdout = budget = exposures = groups = None
    if (run / "holdout.parquet").is_file():
        table = read_table(run, "holdout.parquet", ("nearest_distance",))
        holdout = tuple(float(d) for d in table["nearest_distance"].astype("float64"))
    if (run / "budget.parquet").is_file():
        budget = read_table(run, "budget.parquet", BUDGET_COLUMNS)
    if (run / "exposure.parquet").is_file():
        exposures = read_table(run, "exposure.parquet", EXPOSURE_COLUMNS)
    if (run / "exposure_groups.parquet").is_file():
        groups = read_table(run, "exposure_groups.parquet", ("group", ORDER))
    images = str(manifest.get("images") or "none")
    gallery: tuple[GalleryItem, ...] = ()
    exposure_gallery: tuple[ExposureItem, ...] = ()
    if images != "none":
        gallery = _read_gallery(run, GALLERY, GalleryItem)
        exposure_gallery = _read_gallery(run, EXPOSURE_GALLERY, ExposureItem)
    by_set = {}
    if (run / "metrics_by_set.json").is_file():
        by_set = read_mapping(run, "metrics_by_set.json")
    stages = tuple((str(s["name"]), float(s["seconds"])) for s in manifest.get("stages") or ())
    named = ("evaluator", "target", "inputs", "settings", "versions", "shadows")
    facts = {name: _facts_of(manifest.get(name)) for name in named}
    counts = [(name, counts_of(one)) for name, one in facts["inputs"].items()]
    return ReportData(
        title=title or manifest.get("title") or "Model inversion audit",
        metrics=read_mapping(run, "metrics.json"),
        samples=read_table(run, "samples.parquet", REQUIRED),
        by_set=by_set if len(by_set) > 1 else {},
        split=manifest.get("split")
        or "; ".join(f"{k}: {counts_text(**c)}" for k, c in counts if c),
        facts=_short_facts(manifest, stages),
        embedding=str(manifest.get("embedding") or ""),
        holdout_nearest=holdout,
        budget=budget,
        exposures=exposures,
        exposure_groups=groups,
        gallery=gallery,
        exposure_gallery=exposure_gallery,
        images=images,
        attempts=tuple(attempts(manifest)),
        training=training_of(manifest),
        stages=stages,
        warnings=tuple(map(str, manifest.get("warnings") or ())),
        notes=tuple(map(str, manifest.get("notes") or ())),
        **facts,
    )


def without_paths(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``manifest`` with every path that a user gave replaced by ``HIDDEN``, in sentences too."""
    settings = _facts_of(manifest.get("settings"))
    given = [settings.get(name) for name in _PATHS]
    given += [mapping(one).get("path") for one in _facts_of(manifest.get("inputs")).values()]
    given += [mapping(manifest.get(name)).get("spec") for name in ("target", "evaluator")]
    paths = {str(settings["group_by"])} if settings.get("group_by") else set()
    for name in _IMAGES:
        if isinstance(one := settings.get(name), str):
            file, _, _ = one.rpartition(":")  # FILE:SPLIT
            paths |= {one, file} if len(file) > 1 else {one}
    for one in given:
        if isinstance(one, str):
            # Of 'package.module:factory?weights=FILE' the code may be named, the file may not.
            _, mark, query = one.partition("?")
            service = one.startswith("endpoint:")
            path = query.partition("=")[2].partition("&")[0] if mark and not service else one
            names_code = (
                not service
                and ":" in path
                and not Path(path).is_absolute()
                and not Path(path).exists()
            )
            if path and not names_code and path not in _NOT_PATHS:
                paths.add(path)
    # The longest first: one path may be a prefix of another.
    ordered = sorted(paths, key=lambda path: (-len(path), path))

    def hidden(value: Any) -> Any:
        if isinstance(value, str):
            for path in ordered:
                value = re.sub(rf"(?<![\w./-]){re.escape(path)}(?![\w-])", HIDDEN, value)
            return value
        if isinstance(value, Mapping):
            return {key: hidden(one) for key, one in value.items()}
        return [hidden(one) for one in value] if isinstance(value, (list, tuple)) else value

    parts = ("split", "settings", "inputs", "target", "evaluator", "shadows", "warnings", "notes")
    found = {**manifest, **{name: hidden(manifest[name]) for name in parts if name in manifest}}
    for name, value in settings.items():
        if name not in _PATHS:  # another setting may have the same value as a path
            found["settings"][name] = value
    return found


def nearest_first(samples: pd.DataFrame) -> pd.DataFrame:
    """Return the rows by nearest distance, smallest first, then by id; missing distances last."""
    return samples.sort_values(["nearest_distance", "id"], na_position="last", kind="stable")


def worst_first(samples: pd.DataFrame) -> pd.DataFrame:
    """Return the rows by shrunken exposure, largest first; those without one, or all, by nearest distance."""
    ordered = nearest_first(samples)
    if ORDER not in samples:
        return ordered
    keys = [key for key in (ORDER, "exposure") if key in samples]
    return ordered.sort_values(keys, ascending=False, na_position="last", kind="stable")


def _facts_of(value: Any) -> dict[str, Any]:
    """Return a part of the manifest as a mapping; a plain value becomes its name."""
    if value is None:
        return {}
    return dict(value) if isinstance(value, Mapping) else {"name": value}


def _short_facts(
    manifest: Mapping[str, Any], stages: Sequence[tuple[str, float]]
) -> dict[str, str]:
    queries = _facts_of(manifest.get("queries"))
    named = {
        "created": manifest.get("created"),
        "inversight": manifest.get("version"),
        "preset": manifest.get("preset"),
        "access to the target": manifest.get("target_access"),
        "arm": mapping(manifest.get("settings")).get("arm"),
        "seed": manifest.get("seed"),
        "device": manifest.get("device"),
        "threads": manifest.get("threads"),
        "embedding": manifest.get("embedding"),
        "features": manifest.get("features"),
        "guidance embedding": manifest.get("guidance_embedding"),
        "images sent to the target": ", ".join(f"{k} {n:,}" for k, n in queries.items()) or None,
        "time of all stages": duration(sum(s for _, s in stages)) if stages else None,
    }
    return {name: str(value) for name, value in named.items() if value is not None}
