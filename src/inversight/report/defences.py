"""The page about defences: what each leaves of the target's use, what still leaks, and of whom.

Pure: ``defences.json`` and ``images.parquet`` in, text out. A file may lack any measure; what it lacks
is shown as missing and never as 0.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from inversight.report import defence_words, words
from inversight.report.defence_words import MEASURES, UTILITY
from inversight.report.ledger import headings, rows
from inversight.report.reading import flatten
from inversight.report.templating import environment, own
from inversight.report.trade_off import dots, trade_off

MOST_ROWS = 2000
"""Rows of a table of images that the page shows; ``images.parquet`` has all."""

UNDEFENDED = "none"
"""The name of the target as it is."""

_IMAGE_COLUMNS = (
    "defence", "id", "label", "protected", "nearest_distance_before", "nearest_distance", "ratio",
    "flagged_before", "flagged_after",
)  # fmt: skip
_OVERVIEW = ("holdout_accuracy", "leakage_gap", "ddcs_best", "distance_protected", "flagged")


@dataclass(frozen=True)
class Line:
    """One measure of one defence, in words. reading: see :data:`defence_words.Reading`."""

    key: str
    name: str
    meaning: str
    good: str
    before: str
    after: str
    change: str
    interval: str
    reading: str


@dataclass(frozen=True)
class Shown:
    """A defence, in words. overview: its lines of the overview; lines: all it has."""

    name: str
    title: str
    level: str
    what: str
    undefended: bool
    recommended: bool
    failed: str
    seeds: str
    minutes: str
    overview: tuple[Line, ...]
    lines: tuple[Line, ...]
    exposure: str
    masked: str
    facts: tuple[tuple[str, str], ...]


def render_defences(
    found: Mapping[str, Any], images: pd.DataFrame, *, measure: str = "leakage_gap"
) -> str:
    """One self-contained HTML page: no file beside it, no network, every name in it inert text.

    found: what ``defences.json`` holds. images: what ``images.parquet`` holds, one row for each
    defence and private image. measure: what the first picture sets against accuracy on the holdout;
    where fewer than two models have it, DDCS best stands in and the page says so.

    Raises:
        ValueError: ``images`` lacks a column, or ``measure`` is not one that leaks.
    """
    missing = [name for name in _IMAGE_COLUMNS if name not in images.columns]
    if missing:
        raise ValueError(f"images lack the column {missing[0]}")
    if measure not in MEASURES or measure in UTILITY:
        known = ", ".join(key for key in MEASURES if key not in UTILITY)
        raise ValueError(f"measure {measure}: expected one of {known}")
    defences = _defences(found)
    chosen = _mapping(found.get("recommendation")).get("defence")
    table = images[images["defence"] != UNDEFENDED]
    protected = _protected(table)
    exposed = _more_exposed(table, defences)
    keys = tuple(k for k in _OVERVIEW if any(_has(d, k) for d in defences))
    described = [_shown(d, defences, keys, chosen) for d in defences]
    return (
        environment()
        .get_template("defences.html")
        .render(
            title="Defences against model inversion",
            run=words.visible(str(found.get("run") or "")),
            recommendation=_recommendation(found, defences),
            warnings=[words.visible(str(w)) for w in found.get("warnings") or ()],
            seeds=_seeds(found),
            few=_few_seeds(_seeds(found)),
            facts=_facts(found),
            measure=defence_words.measure(measure),
            panels=_panels(defences, measure, chosen),
            overview=[defence_words.measure(key) for key in keys],
            overview_good=[defence_words.good(key) for key in keys],
            defences=described,
            protected_columns=headings(
                protected, _order(protected), defence_words.column, ("label",)
            ),
            protected_rows=rows(protected.head(MOST_ROWS), _order(protected)),
            protected_count=len(protected),
            exposed_columns=headings(exposed, _order(exposed), defence_words.column, ("label",)),
            exposed_rows=rows(exposed.head(MOST_ROWS), _order(exposed)),
            exposed_count=len(exposed),
            most=MOST_ROWS,
            nothing=words.NONE,
        )
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _defences(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The undefended target first, then the defences as they come, those that failed last."""
    listed = list(found.get("defences") or ())
    return sorted(listed, key=lambda d: (bool(d.get("failed")), d["name"] != UNDEFENDED))


def _has(defence: Mapping[str, Any], key: str) -> bool:
    return any(
        defence_words.value(_mapping(defence.get(part)).get(key)) is not None
        for part in ("measures", "changes")
    )


def _seeds(found: Mapping[str, Any]) -> int:
    seeds = found.get("seeds")
    return len(seeds) if isinstance(seeds, (list, tuple)) else int(seeds or 0)


def _few_seeds(seeds: int) -> str:
    if seeds == 1:
        return (
            "This ran with one seed: there are no intervals, so nothing here says whether a "
            "difference is more than the chance of one training. Run it with several seeds before "
            "choosing by it."
        )
    if seeds == 2:
        return (
            "This ran with two seeds: the intervals stand on one degree of freedom and are very "
            "wide. More seeds say more."
        )
    return ""


def _recommendation(
    found: Mapping[str, Any], defences: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """level (of the page's box), sentence and reason."""
    given = _mapping(found.get("recommendation"))
    name, reason = given.get("defence"), words.visible(str(given.get("reason") or ""))
    if not name:
        return {"level": "unclear", "sentence": "No defence is recommended.", "reason": reason}
    if name == UNDEFENDED:
        return {
            "level": "unclear",
            "sentence": "Recommended: leave the target as it is.",
            "reason": reason,
        }
    title = next((_title(d) for d in defences if d["name"] == name), words.visible(str(name)))
    shown = words.visible(str(name))
    both = shown if title == shown else f"{title} ({shown})"
    return {"level": "chosen", "sentence": f"Recommended: {both}.", "reason": reason}


def _facts(found: Mapping[str, Any]) -> dict[str, str]:
    attacks = ", ".join(f"{name} ({a})" for name, a in _mapping(found.get("attacks")).items())
    protected = _mapping(found.get("protected"))
    seeds = found.get("seeds")
    named = {
        "run": found.get("run"),
        "created": found.get("created"),
        "inversight": found.get("version"),
        "attacks (access)": attacks,
        "embedding": found.get("embedding"),
        "seeds": ", ".join(map(str, seeds)) if isinstance(seeds, (list, tuple)) else seeds,
        "false-discovery rate": found.get("fdr"),
        "protected": f"{protected.get('count')} of {protected.get('of')} images"
        if protected.get("count") is not None
        else None,
        "protected by": protected.get("rule"),
    }
    return {name: words.visible(str(v)) for name, v in named.items() if v not in (None, "")}


def _panels(
    defences: Sequence[Mapping[str, Any]], measure: str, chosen: str | None
) -> list[dict[str, Any]]:
    """The pictures that the data allow, each with what its caption says."""
    panels = []
    note = ""
    first = measure
    if len(dots(defences, measure, changes=False, chosen=chosen)) < 2 and measure != "ddcs_best":
        first = "ddcs_best"
        note = f"{defence_words.measure(measure).name} has no value here; DDCS stands in for it."
    second = "distance" if len(dots(defences, "distance", changes=True, chosen=None)) > 1 else ""
    if not second and first != "ddcs_best":
        second = "ddcs_best"
    for key, said in ((first, note), (second, "")):
        if not key:
            continue
        changes = key in defence_words.RATIOS
        drawn = dots(defences, key, changes=changes, chosen=chosen)
        svg = trade_off(drawn, key, changes=changes)
        if svg is None:
            continue
        here = {dot.name for dot in drawn}
        panels.append(
            {
                "svg": own(svg),
                "name": defence_words.measure(key).name,
                "meaning": defence_words.measure(key).meaning,
                "note": said,
                "absent": [
                    words.visible(d["name"])
                    for d in defences
                    if not d.get("failed") and d["name"] not in here
                ],
            }
        )
    return panels


def _shown(
    defence: Mapping[str, Any],
    defences: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    chosen: str | None,
) -> Shown:
    name = str(defence["name"])
    base = next((d for d in defences if d["name"] == UNDEFENDED), {})
    failed = defence.get("failed")
    minutes = defence.get("minutes")
    had = [k for k in (*MEASURES, *_mapping(defence.get("measures"))) if _has(defence, k)]
    return Shown(
        name=words.visible(name),
        title=_title(defence),
        level=defence_words.LEVELS.get(str(defence.get("level")), str(defence.get("level") or "")),
        what=words.visible(str(defence.get("what") or "")),
        undefended=name == UNDEFENDED,
        recommended=name == chosen and name != UNDEFENDED,
        failed=words.visible(str(failed)) if failed else "",
        seeds=str(defence.get("seeds") if defence.get("seeds") is not None else words.NONE),
        minutes="" if words.is_missing(minutes) else f"{words.number(minutes)} min",
        overview=tuple(_line(key, defence, base) for key in keys),
        lines=tuple(_line(key, defence, base) for key in dict.fromkeys(had)),
        exposure=_exposure(defence.get("exposure")),
        masked=words.visible(str(defence.get("masked") or "")),
        facts=tuple(
            (words.visible(str(k)), words.visible(words.number(v)))
            for k, v in flatten(dict(_mapping(defence.get("facts")))).items()
            if k
        ),
    )


def _title(defence: Mapping[str, Any]) -> str:
    name, title = defence["name"], defence.get("title")
    if name == UNDEFENDED and title in (None, "", name):
        return "undefended"
    return words.visible(str(title or name))


def _line(key: str, defence: Mapping[str, Any], base: Mapping[str, Any]) -> Line:
    word = defence_words.measure(key)
    own_value = _mapping(defence.get("measures")).get(key)
    before = _mapping(base.get("measures")).get(key)
    undefended = defence["name"] == UNDEFENDED
    change = None if undefended else _mapping(defence.get("changes")).get(key)
    return Line(
        key=words.visible(key),
        name=words.visible(word.name),
        meaning=word.meaning,
        good=defence_words.good(key),
        before="" if undefended else words.number(defence_words.value(before)),
        after=words.number(defence_words.value(own_value)),
        change="" if undefended else defence_words.shown(key, change),
        interval=defence_words.bounds(own_value if undefended else change),
        reading="" if undefended else defence_words.reading(key, change),
    )


def _exposure(found: Any) -> str:
    if not isinstance(found, Mapping):
        return ""

    def count(key: str) -> int:
        value = found.get(key) or 0
        return int(value) if isinstance(value, (int, float)) else len(value)

    always = count("nearer_in_every_seed")
    parts = [
        f"{count('farther')} farther",
        f"{count('nearer')} nearer" + (f", {always} of them in every seed" if always else ""),
        f"{count('newly_flagged')} newly flagged",
        f"{count('no_longer_flagged')} no longer",
    ]
    return "; ".join(parts)


def _protected(images: pd.DataFrame) -> pd.DataFrame:
    table = images[images["protected"].fillna(False).astype(bool)]
    return _nearest_first(table.drop(columns="protected"))


def _more_exposed(images: pd.DataFrame, defences: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Images that a defence brought into danger, with what ``images`` knows of each."""
    reasons = {"newly_flagged": "newly flagged", "nearer_in_every_seed": "nearer in every seed"}
    why: dict[tuple[str, str], list[str]] = {}
    for defence in defences:
        exposure = _mapping(defence.get("exposure"))
        for key, reason in reasons.items():
            for image in exposure.get(key) or ():
                why.setdefault((str(defence["name"]), str(image)), []).append(reason)
    listed = pd.DataFrame(
        [(*key, ", ".join(reason)) for key, reason in why.items()],
        columns=["defence", "id", "why"],
        dtype=object,
    )
    known = images.astype({"defence": object, "id": object})
    return _nearest_first(listed.merge(known, on=["defence", "id"], how="left"))


def _nearest_first(table: pd.DataFrame) -> pd.DataFrame:
    """Those that came nearest, relative to before, first."""
    return table.sort_values(["ratio", "defence", "id"], na_position="last", kind="stable")


def _order(table: pd.DataFrame) -> list[str]:
    """Columns that words are known for; a table of another version may have more."""
    return [key for key in defence_words.COLUMNS if key in table.columns]


def render_defences_text(found: Mapping[str, Any], *, width: int = 110) -> str:
    """The defences as plain text, ``width`` columns wide at most.

    Characters that a terminal would obey are written as escapes.
    """
    out = io.StringIO()
    console = Console(
        file=out, width=width, markup=False, highlight=False, emoji=False, color_system=None
    )
    defences = _defences(found)
    recommendation = _recommendation(found, defences)
    console.print(recommendation["sentence"])
    if recommendation["reason"]:
        console.print(recommendation["reason"])
    console.print()
    warnings = [words.visible(str(w)) for w in found.get("warnings") or ()]
    few = _few_seeds(_seeds(found))
    for text in [*([few] if few else []), *warnings]:
        console.print(f"warning: {text}")
    if few or warnings:
        console.print()

    chosen = _mapping(found.get("recommendation")).get("defence")
    keys = tuple(k for k in _OVERVIEW if any(_has(d, k) for d in defences))
    described = [_shown(d, defences, keys, chosen) for d in defences]
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("defence", overflow="fold")
    table.add_column("measure", overflow="fold")
    for heading in ("undefended", "defended", "change", "95 % interval"):
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("", overflow="fold")
    for one in described:
        if one.failed:
            table.add_row(one.name, "failed", *[words.NONE] * 3)
        for i, line in enumerate(() if one.failed else one.overview):
            name = ("* " if one.recommended else "") + one.name if i == 0 else ""
            before, after = (line.after, "") if one.undefended else (line.before, line.after)
            changed = (line.change, line.interval, line.reading)
            table.add_row(name, line.name, before, after, *changed)
    console.print(table)
    console.print()
    console.print(
        "Changes are against the undefended target, intervals over seeds; of a distance the change "
        "is a ratio, above 1 farther."
    )
    if any(one.recommended for one in described):
        console.print("*: recommended.")
    for one in described:
        notes = [("failed", one.failed), ("images", one.exposure), ("masked", one.masked)]
        for what, text in notes:
            if text:
                console.print(f"{one.name}: {what}: {text}")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
