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
    PlainText,
    get_interval,
    get_number,
    interval_text,
    is_missing,
    mapping,
    number,
    plain_table,
    signed,
    visible,
)
from inversight.report.ledger import Ledger
from inversight.report.reading import flatten
from inversight.report.templating import html_template, trusted
from inversight.report.trade_off import trade_off, trade_off_points

UNDEFENDED = "none"
"""Name of the target without a defence."""

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
    name: str
    meaning: str
    good: str
    before: str
    after: str
    change: str
    interval: str
    reading: Reading


@dataclass(frozen=True)
class DefenceSummary:
    """A defence as text. overview: rows of the measures in the overview; rows: all its measures."""

    name: str
    title: str
    level: str
    what: str
    undefended: bool
    recommended: bool
    failed: str
    seeds: str
    minutes: str
    overview: tuple[MeasureRow, ...]
    rows: tuple[MeasureRow, ...]
    images: str
    masked: str
    facts: tuple[tuple[str, str], ...]


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
    defences = _ordered(found)
    table = images[images["defence"] != UNDEFENDED]
    protected = _nearest_first(
        table[table["protected"].fillna(False).astype(bool)].drop(columns="protected")
    )
    keys = _overview_keys(defences)
    return html_template("defences.html").render(
        title="Defences against model inversion",
        recommendation=_recommendation(found, defences),
        warnings=_warnings(found),
        seeds=_seed_count(found),
        facts=_facts(found),
        figures=_figures(defences, measure, _recommended(found)),
        overview=[(words.MEASURES[key], good_direction(key)) for key in keys],
        defences=_summaries(found, defences, keys),
        tables=[
            Ledger.of(name, rows, words.IMAGE_COLUMNS, words.IMAGE_COLUMNS)
            for name, rows in (("protected", protected), ("nearer", _nearer(table, defences)))
        ],
        nothing=NONE,
    )


def render_defences_text(found: Record, *, width: int = 110) -> str:
    """Return the defences as plain text, ``width`` columns wide at most, for a terminal.

    Characters that a terminal would interpret are written as escapes.
    """
    out = PlainText(width)
    defences = _ordered(found)
    recommendation = _recommendation(found, defences)
    out.print(recommendation["sentence"])
    if recommendation["reason"]:
        out.print(recommendation["reason"])
    out.print()
    warnings = _warnings(found)
    for text in warnings:
        out.print(f"warning: {text}")
    if warnings:
        out.print()

    summaries = _summaries(found, defences, _overview_keys(defences))
    table = plain_table(
        [("defence", False), ("measure", False)]
        + [(name, True) for name in ("undefended", "defended", "change", "95 % interval")]
        + [("", False)]
    )
    for one in summaries:
        if one.failed:
            table.add_row(one.name, "failed", NONE, NONE, NONE)
            continue
        for i, row in enumerate(one.overview):
            name = ("* " if one.recommended else "") + one.name if i == 0 else ""
            values = (row.after, "") if one.undefended else (row.before, row.after)
            table.add_row(name, row.name, *values, row.change, row.interval, row.reading)
    out.print(table)
    out.print()
    out.print(
        "Changes are against the undefended target, intervals over seeds. The change of a distance is a "
        "ratio: above 1 is farther."
    )
    if any(one.recommended for one in summaries):
        out.print("*: recommended.")
    for one in summaries:
        for what, text in (("failed", one.failed), ("images", one.images), ("masked", one.masked)):
            if text:
                out.print(f"{one.name}: {what}: {text}")
    return str(out)


def good_direction(key: str) -> str:
    """Return 'higher is better', 'lower is better' or "" for a measure."""
    worse = words.MEASURES[key].worse
    return {"higher": "lower is better", "lower": "higher is better"}.get(worse, "")


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


def _ordered(found: Record) -> list[Record]:
    """Return the undefended target first, then the defences, those that failed last."""
    listed = list(found.get("defences") or ())
    return sorted(listed, key=lambda d: (bool(d.get("failed")), d["name"] != UNDEFENDED))


def _has(defence: Record, key: str) -> bool:
    parts = (mapping(defence.get(part)).get(key) for part in ("measures", "changes"))
    return any(get_number(mapping(part), "mean") is not None for part in parts)


def _overview_keys(defences: Sequence[Record]) -> list[str]:
    return [key for key in _OVERVIEW if any(_has(one, key) for one in defences)]


def _seed_count(found: Record) -> int:
    seeds = found.get("seeds")
    return len(seeds) if isinstance(seeds, (list, tuple)) else int(seeds or 0)


def _warnings(found: Record) -> list[str]:
    few = {
        1: "There is one seed and therefore no interval: no difference can be separated from the "
        "chance of one training. Run several seeds before you choose a defence.",
        2: "There are two seeds: the intervals have one degree of freedom and are very wide. Run more "
        "seeds.",
    }.get(_seed_count(found))
    return [*([few] if few else []), *map(visible, found.get("warnings") or ())]


def _recommended(found: Record) -> str | None:
    return mapping(found.get("recommendation")).get("defence")


def _recommendation(found: Record, defences: Sequence[Record]) -> dict[str, str]:
    """Return level (style of the page's box), sentence and reason."""
    name = _recommended(found)
    level = "unclear"
    if not name:
        sentence = "No defence is recommended."
    elif name == UNDEFENDED:
        sentence = "Recommended: leave the target as it is."
    else:
        level, short = "chosen", visible(name)
        title = next((_title(d) for d in defences if d["name"] == name), short)
        sentence = f"Recommended: {title if title == short else f'{title} ({short})'}."
    reason = visible(mapping(found.get("recommendation")).get("reason") or "")
    return {"level": level, "sentence": sentence, "reason": reason}


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


def _figures(
    defences: Sequence[Record], measure: str, recommended: str | None
) -> list[dict[str, Any]]:
    """Return the figures that can be drawn, each with the parts of its caption."""
    first, note = measure, ""
    if measure != "ddcs_best" and len(trade_off_points(defences, measure)) < 2:
        first, note = "ddcs_best", f"{words.MEASURES[measure].name} has no value; DDCS replaces it."
    second = "distance" if len(trade_off_points(defences, "distance")) > 1 else "ddcs_best"
    figures = []
    for key in dict.fromkeys((first, second)):
        points = trade_off_points(defences, key, recommended=recommended)
        svg = trade_off(points, key)
        if svg is not None:
            drawn = {point.name for point in points}
            rest = [d["name"] for d in defences if not d.get("failed") and d["name"] not in drawn]
            figures.append(
                {
                    "svg": trusted(svg),
                    "word": words.MEASURES[key],
                    "note": note if key == first else "",
                    "absent": list(map(visible, rest)),
                }
            )
    return figures


def _summaries(
    found: Record, defences: Sequence[Record], overview: Sequence[str]
) -> list[DefenceSummary]:
    base = next((d for d in defences if d["name"] == UNDEFENDED), {})
    return [_summary(one, base, overview, _recommended(found)) for one in defences]


def _summary(
    defence: Record, base: Record, overview: Sequence[str], recommended: str | None
) -> DefenceSummary:
    name, level, minutes = defence["name"], str(defence.get("level") or ""), defence.get("minutes")
    keys = dict.fromkeys([*words.MEASURES, *mapping(defence.get("measures"))])
    facts = flatten(dict(mapping(defence.get("facts"))))
    return DefenceSummary(
        name=visible(name),
        title=_title(defence),
        level=LEVELS.get(level, level),
        what=visible(defence.get("what") or ""),
        undefended=name == UNDEFENDED,
        recommended=name == recommended and name != UNDEFENDED,
        failed=visible(defence.get("failed") or ""),
        seeds=number(defence.get("seeds")),
        minutes="" if is_missing(minutes) else f"{number(minutes)} min",
        overview=tuple(_measure_row(key, defence, base) for key in overview),
        rows=tuple(_measure_row(key, defence, base) for key in keys if _has(defence, key)),
        images=_moved(mapping(defence.get("images"))),
        masked=visible(defence.get("masked") or ""),
        facts=tuple((visible(k), visible(number(v))) for k, v in facts.items() if k),
    )


def _title(defence: Record) -> str:
    name, title = defence["name"], defence.get("title")
    return (
        "undefended" if name == UNDEFENDED and title in (None, "", name) else visible(title or name)
    )


def _measure_row(key: str, defence: Record, base: Record) -> MeasureRow:
    word = words.MEASURES[key]
    after = mapping(defence.get("measures")).get(key)
    before = mapping(base.get("measures")).get(key)
    undefended = defence["name"] == UNDEFENDED
    change = None if undefended else mapping(defence.get("changes")).get(key)
    return MeasureRow(
        key=visible(key),
        name=visible(word.name),
        meaning=word.meaning,
        good=good_direction(key),
        before="" if undefended else number(get_number(before, "mean")),
        after=number(get_number(after, "mean")),
        change="" if undefended else change_text(key, change),
        interval=interval_text(after if undefended else change),
        reading=reading(key, change),
    )


def _moved(images: Record) -> str:
    """Say how many images a defence moved."""
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
    why: dict[tuple[str, str], list[str]] = {}
    for defence in defences:
        for key, reason in reasons.items():
            for image in mapping(defence.get("images")).get(key) or ():
                why.setdefault((str(defence["name"]), str(image)), []).append(reason)
    listed = pd.DataFrame(
        [(*key, ", ".join(reason)) for key, reason in why.items()],
        columns=["defence", "id", "why"],
        dtype=object,
    )
    known = images.astype({"defence": object, "id": object})
    return _nearest_first(listed.merge(known, on=["defence", "id"], how="left"))


def _nearest_first(table: pd.DataFrame) -> pd.DataFrame:
    """Sort by the ratio of the distances, images that came nearest first."""
    return table.sort_values(["ratio", "defence", "id"], na_position="last", kind="stable")
