"""The page and the terminal text about defences: accuracy kept, leakage left, and images affected.

``defences.json`` and ``images.parquet`` go in, text comes out. A file may lack any measure; a missing one
is shown as missing, never as 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from inversight.report import words
from inversight.report.formatting import (
    NONE,
    get_interval,
    get_number,
    interval_text,
    is_missing,
    mapping,
    number,
    plain_table,
    plain_text,
    signed,
    visible,
)
from inversight.report.ledger import Ledger
from inversight.report.reading import flatten
from inversight.report.templating import html_template, render_lines
from inversight.report.trade_off import UNDEFENDED, part_of, trade_off, trade_off_points

LEVELS = {
    "none": "nothing",
    "sample": "training images",
    "model": "training of the target",
    "output": "outputs of the target",
}
"""What a defence changes."""

Record = Mapping[str, Any]
"""defences.json, or a part of it."""

Reading = Literal["better", "worse", "higher", "lower", "not clear", "no interval", ""]
"""A change in one word. higher, lower: clear, but neither good nor bad in itself."""

_REQUIRED = (
    "defence", "id", "label", "protected", "nearest_distance_before", "nearest_distance", "ratio",
    "flagged_before", "flagged_after",
)  # fmt: skip
"""Columns that images.parquet must have."""
_OVERVIEW = ("holdout_accuracy", "leakage_gap", "ddcs_best", "distance_protected", "flagged")


@dataclass(frozen=True)
class MeasureRow:
    """One measure of one defence as text; before, change and reading are "" for the undefended target."""

    key: str
    word: words.Word
    before: str
    after: str
    change: str
    interval: str
    reading: Reading


def render_defences(found: Record, images: pd.DataFrame, *, measure: str = "leakage_gap") -> str:
    """Return one self-contained HTML page: no other file, no network, every name in it inert text.

    found: content of ``defences.json``. images: content of ``images.parquet``, one row for each
    defence and private image. measure: what the first figure plots against accuracy on the holdout;
    where fewer than two models have it, DDCS best replaces it and the page says so.

    Raises:
        ValueError: ``images`` lacks a column, or ``measure`` is not a measure of leakage.
    """
    missing = [name for name in _REQUIRED if name not in images.columns]
    if missing:
        raise ValueError(f"images lack the column {missing[0]}")
    leakage = [key for key in words.MEASURES if key not in words.UTILITY]
    if measure not in leakage:
        raise ValueError(f"measure {measure}: expected one of {', '.join(leakage)}")
    table = images[images["defence"] != UNDEFENDED]
    protected = table[table["protected"].fillna(False).astype(bool)].drop(columns="protected")
    listed = {"protected": protected, "nearer": _nearer(table, _ordered(found))}
    return html_template("defences.html").render(
        **_contents(found),
        title="Defences against model inversion",
        facts=_facts(found),
        figures=_figures(found, measure),
        tables=[
            # Images that came nearest first.
            Ledger.of(
                name,
                rows.sort_values(["ratio", "defence", "id"], na_position="last", kind="stable"),
                words.IMAGE_COLUMNS,
                words.IMAGE_COLUMNS,
            )
            for name, rows in listed.items()
        ],
        nothing=NONE,
    )


def render_defences_text(found: Record, *, width: int = 110) -> str:
    """Return the defences as plain text, ``width`` columns wide at most, for a terminal.

    Characters that a terminal would interpret are written as escapes.
    """
    contents = _contents(found)
    defences = contents["defences"]
    rows: list[tuple[str, ...]] = []
    notes = []
    for one in defences:
        if one["failed"]:
            rows.append((one["name"], "failed", NONE, NONE, NONE))
        for i, row in enumerate(() if one["failed"] else one["overview"]):
            name = ("* " if one["recommended"] else "") + one["name"] if i == 0 else ""
            values = (row.after, "") if one["undefended"] else (row.before, row.after)
            rows.append((name, row.word.name, *values, row.change, row.interval, row.reading))
        for what in ("failed", "images", "masked"):
            if one[what]:
                notes.append(f"{one['name']}: {what}: {one[what]}")
    headings = ("defence", "measure", "undefended", "defended", "change", "95 % interval", "")
    warnings = [f"warning: {text}" for text in contents["warnings"]]
    return plain_text(
        [
            *contents["recommendation"],
            "",
            *([*warnings, ""] if warnings else ()),
            plain_table(headings, rows, numeric=(2, 3, 4, 5)),
            "",
            "Changes are against the undefended target, intervals over seeds. The change of a distance is a "
            "ratio: above 1 is farther.",
            *(["*: recommended."] if any(one["recommended"] for one in defences) else ()),
            *notes,
        ],
        width,
    )


def reading(key: str, change: Record | None) -> Reading:
    """Return a change in one word; it is clear only if its interval excludes "no change"."""
    if get_number(change, "mean") is None:
        return ""
    bounds = get_interval(change)
    if bounds is None:
        return "no interval"
    unchanged = 1.0 if key in words.RATIOS else 0.0
    if bounds[0] <= unchanged <= bounds[1]:
        return "not clear"
    moved: Reading = "higher" if bounds[0] > unchanged else "lower"
    worse = words.MEASURES[key].worse
    if not worse:
        return moved
    return "worse" if moved == worse else "better"


def change_text(key: str, change: Record | None) -> str:
    """Return a change as a signed difference or as '× ratio'; ``NONE`` if it is missing."""
    mean = get_number(change, "mean")
    if mean is None or key not in words.RATIOS:
        return signed(mean)
    return f"\N{MULTIPLICATION SIGN} {number(mean)}"


def _contents(found: Record) -> dict[str, Any]:
    """Return what page and terminal text have in common, as text.

    recommendation: a sentence and perhaps its reason; chosen: whether a defence is recommended;
    overview: the measures that are shown first.
    """
    defences = _ordered(found)
    base = next((d for d in defences if d["name"] == UNDEFENDED), {})
    overview = [key for key in _OVERVIEW if any(_has(one, key) for one in defences)]
    recommendation = mapping(found.get("recommendation"))
    name = recommendation.get("defence")
    seeds = found.get("seeds")
    count = len(seeds) if isinstance(seeds, (list, tuple)) else int(seeds or 0)
    return {
        "recommendation": render_lines(
            "recommendation.txt",
            name=name,
            undefended=UNDEFENDED,
            title=next((_title(d) for d in defences if d["name"] == name), visible(name)),
            reason=recommendation.get("reason") or "",
        ),
        "chosen": bool(name) and name != UNDEFENDED,
        "warnings": render_lines(
            "defence_warnings.txt", seeds=count, warnings=found.get("warnings") or ()
        ),
        "seeds": count,
        "overview": [words.MEASURES[key] for key in overview],
        "defences": [_summary(one, base, overview, name) for one in defences],
    }


def _ordered(found: Record) -> list[Record]:
    """Return the undefended target first, then the defences, those that failed last."""
    listed = list(found.get("defences") or ())
    return sorted(listed, key=lambda d: (bool(d.get("failed")), d["name"] != UNDEFENDED))


def _has(defence: Record, key: str) -> bool:
    parts = (part_of(defence, name, key) for name in ("measures", "changes"))
    return any(get_number(part, "mean") is not None for part in parts)


def _facts(found: Record) -> dict[str, str]:
    protected, seeds = mapping(found.get("protected")), found.get("seeds")
    count = protected.get("count")
    named = {
        "run": found.get("run"),
        "created": found.get("created"),
        "inversight": found.get("version"),
        "attacks (access)": ", ".join(
            f"{k} ({v})" for k, v in mapping(found.get("attacks")).items()
        ),
        "embedding": found.get("embedding"),
        "seeds": ", ".join(map(str, seeds)) if isinstance(seeds, (list, tuple)) else seeds,
        "false-discovery rate": found.get("fdr"),
        "protected": None if count is None else f"{count} of {protected.get('of')} images",
        "protected by": protected.get("rule"),
    }
    return {name: visible(value) for name, value in named.items() if value not in (None, "")}


def _figures(found: Record, measure: str) -> list[dict[str, Any]]:
    """Return the figures that can be drawn, each with the parts of its caption."""
    defences = _ordered(found)
    recommended = mapping(found.get("recommendation")).get("defence")
    points = {
        key: trade_off_points(defences, key, recommended=recommended)
        for key in (measure, "distance", "ddcs_best")
    }
    first, second = (key if len(points[key]) > 1 else "ddcs_best" for key in (measure, "distance"))
    replaced = f"{words.MEASURES[measure].name} has no value; DDCS replaces it."
    figures = []
    for key in dict.fromkeys((first, second)):
        svg = trade_off(points[key], key)
        if svg is not None:
            drawn = {point.name for point in points[key]}
            names = [d["name"] for d in defences if not d.get("failed")]
            figures.append(
                {
                    "svg": svg,
                    "word": words.MEASURES[key],
                    "note": replaced if key == first != measure else "",
                    "absent": [visible(name) for name in names if name not in drawn],
                }
            )
    return figures


def _summary(
    defence: Record, base: Record, overview: Sequence[str], recommended: str | None
) -> dict[str, Any]:
    """Return a defence as text. overview: rows of the measures shown first; rows: all its measures."""
    name, level, minutes = defence["name"], str(defence.get("level") or ""), defence.get("minutes")
    keys = dict.fromkeys([*words.MEASURES, *mapping(defence.get("measures"))])
    facts = flatten(dict(mapping(defence.get("facts"))))
    return {
        "name": visible(name),
        "title": _title(defence),
        "level": LEVELS.get(level, level),
        "undefended": name == UNDEFENDED,
        "recommended": name == recommended and name != UNDEFENDED,
        **{key: visible(defence.get(key) or "") for key in ("what", "failed", "masked")},
        "seeds": number(defence.get("seeds")),
        "minutes": "" if is_missing(minutes) else f"{number(minutes)} min",
        "overview": [_measure_row(key, defence, base) for key in overview],
        "rows": [_measure_row(key, defence, base) for key in keys if _has(defence, key)],
        "images": _moved(mapping(defence.get("images"))),
        "facts": [(visible(k), visible(number(v))) for k, v in facts.items() if k],
    }


def _title(defence: Record) -> str:
    name, title = defence["name"], defence.get("title")
    return (
        "undefended" if name == UNDEFENDED and title in (None, "", name) else visible(title or name)
    )


def _measure_row(key: str, defence: Record, base: Record) -> MeasureRow:
    word, after = words.MEASURES[key], part_of(defence, "measures", key)
    value = number(get_number(after, "mean"))
    if defence["name"] == UNDEFENDED:
        return MeasureRow(key, word, "", value, "", interval_text(after), "")
    before = number(get_number(part_of(base, "measures", key), "mean"))
    change = part_of(defence, "changes", key)
    return MeasureRow(
        key, word, before, value, change_text(key, change), interval_text(change),
        reading(key, change),
    )  # fmt: skip


def _moved(images: Record) -> str:
    """Return in words how many images a defence moved."""
    if not images:
        return ""
    always = len(images["nearer_in_every_seed"])
    return (
        f"{images['farther']} farther; {images['nearer']} nearer"
        f"{f', {always} of them in every seed' if always else ''}; "
        f"{len(images['newly_flagged'])} newly flagged; "
        f"{len(images['no_longer_flagged'])} no longer flagged"
    )


def _nearer(images: pd.DataFrame, defences: Sequence[Record]) -> pd.DataFrame:
    """Return the images that a defence made worse off, with their rows of ``images``."""
    reasons = {"newly_flagged": "newly flagged", "nearer_in_every_seed": "nearer in every seed"}
    listed = [
        (str(defence["name"]), str(image), reason)
        for defence in defences
        for key, reason in reasons.items()
        for image in mapping(defence.get("images")).get(key) or ()
    ]
    table = pd.DataFrame(listed, columns=["defence", "id", "why"], dtype=object)
    why = table.groupby(["defence", "id"], as_index=False).agg(", ".join)
    known = images.astype({"defence": object, "id": object})
    return why.merge(known, on=["defence", "id"], how="left")
