"""Tables and figure of the results that benchmarks/exposure.py keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import norm

from common import interval, plus_minus, pyplot, save_figure
from exposure_data import MODELS
from exposure_parts import (
    ADAPTED,
    ATTACKS,
    CHOOSING,
    COMPARED,
    COMPARED_BY,
    DEFENCES_TRIED,
    IN_NULL,
    IN_POWER,
    PARTS,
    REPEATS,
    STATISTICS,
)
from inversight.risk.estimates import LEVEL
from inversight.risk.moderation import POWER

Result = dict[str, Any]
NOT_RUN = "not run"
_FIRST = "nearest"
"""The statistic of the audit's own distance."""
_POWER = float(norm.isf(LEVEL) + norm.ppf(POWER))
"""The detectable effect in standard errors."""
_EXPECTED: dict[str, Sequence[str]] = {
    "predicts": (_FIRST, IN_POWER[-1]),
    "repeated": tuple(f"{n}{end}" for n in REPEATS for end in ("", f", {IN_POWER[-1]}")),
    "null": (_FIRST, *IN_NULL),
    "defences": tuple(DEFENCES_TRIED),
    "statistics": tuple(STATISTICS),
    "attacks": (
        *(f"{attack}, {arm}" for attack in ATTACKS for arm in ("unadapted", *ADAPTED)),
        "twice the candidates",
        "two attack seeds, mean",
    ),
}
"""Arms by part, in the order of the tables."""


def tables(found: list[Result], parts: Sequence[str]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return a title and the rows of each of ``parts``."""
    make = {"power": _power, "predicts": _predicts, "strongest": _strongest}
    titles = []
    for part in parts:
        own = [one for one in found if one["part"] == part]
        rows = make[part](own) if part in make else _by_arm(part, own)
        titles.append((f"{part}: {(PARTS[part].__doc__ or '').splitlines()[0]}", rows))
    return titles


def _interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and half its interval; none for two values, where it says nothing."""
    mean, half = interval(values)
    return mean, half if len(values) > 2 else None


def write_tables(page: Path, made: dict[str, tuple[str, list[dict[str, Any]]]]) -> None:
    """Replace the tables of these parts in a Markdown file, each between two comments."""
    text = page.read_text()
    for part, (_, rows) in made.items():
        first, last = f"<!-- table: {part} -->\n", f"<!-- end: {part} -->"
        before, _, rest = text.partition(first)
        _, end, after = rest.partition(last)
        if not end:
            raise SystemExit(
                f"{page}: no place for the table of {part}: {first.strip()} ... {last}"
            )
        names = [name for name in rows[0] if any(row[name] for row in rows)]
        lines = [names, ["---"] * len(names), *([row[name] for name in names] for row in rows)]
        table = "".join(f"| {' | '.join(map(str, one))} |\n" for one in lines)
        text = before + first + table + last + after
    page.write_text(text)


def _power(found: list[Result]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for data, most in MODELS.items():
        if data in _without(found):
            rows.append({"data": data, "models": "", "statistic": "", **_cells("power", [], None)})
            continue
        for models in sorted({min(n, most) for n in (8, 16, 24, 48)}):
            for name in (_FIRST, *IN_POWER):
                arm = str(models) if name == _FIRST else f"{models}, {name}"
                own = [one for one in found if one["data"] == data and one["arm"] == arm]
                row = {"data": data, "models": models, "statistic": name}
                rows.append({**row, **_cells("power", own, None)})
    return rows


def _by_arm(part: str, found: list[Result]) -> list[dict[str, Any]]:
    rows = []
    names = list(dict.fromkeys(one["data"] for one in found))
    for data in [name for name in MODELS if name in names] or ["digits"]:
        own = [one for one in found if one["data"] == data]
        arms = {arm: [one for one in own if one["arm"] == arm] for arm in _EXPECTED[part]}
        base = next((results for results in arms.values() if results), None)
        for arm, results in arms.items():
            row = {"data": data} if part == "statistics" else {}
            rows.append({**row, "arm": arm, **_cells(part, results, base)})
    return rows


def _strongest(found: list[Result]) -> list[dict[str, Any]]:
    """Return a row for each data set and attack, by the statistic that is best on the digits' first seeds."""

    def of(data: str, attack: str, statistic: str) -> list[Result]:
        arm = f"{attack}, {statistic}"
        return [one for one in found if one["data"] == data and one["arm"] == arm]

    def mean_of(results: list[Result]) -> float:
        return sum(map(_effect_over_error, results)) / len(results) if results else -math.inf

    def choosing(attack: str, statistic: str) -> list[Result]:
        return [one for one in of("digits", attack, statistic) if one["seed"] in CHOOSING]

    best = max(COMPARED_BY, key=lambda name: sum(mean_of(choosing(a, name)) for a in COMPARED))
    rows = []
    for data in [name for name in MODELS if name not in _without(found)] or ["digits"]:
        base = None
        for attack, access in COMPARED.items():
            own = of(data, attack, best)
            if data == "digits":
                own = [one for one in own if one["seed"] not in CHOOSING]
            elif not own:
                continue
            base = own if base is None else base
            row = {
                "data": data,
                "attack": attack,
                "access": access,
                **_cells("strongest", own, base),
            }
            if data == "digits":
                for name in COMPARED_BY:
                    value = mean_of(choosing(attack, name))
                    text = f"{value:.1f}" if value > 0 else ""
                    row[f"{name}, seeds 0-2"] = text + " (chosen)" * (name == best)
            rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name, "") for name in names} for row in rows]


def _predicts(found: list[Result]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for one in found for name in one["spearman"]))
    columns = [(data, arm) for data in MODELS for arm in _EXPECTED["predicts"]]
    rows = []
    for name in names or [NOT_RUN]:
        row: dict[str, Any] = {"known": name}
        for data, arm in columns:
            own = [one for one in found if one["data"] == data and one["arm"] == arm]
            values = [one["spearman"].get(name) for one in own]
            numbers = [value for value in values if value is not None]
            text = plus_minus(*_interval(numbers), "+.2f", ".2f") if numbers else ""
            row[f"{data}, {arm}"] = text
        rows.append({k: v for k, v in row.items() if v or not k.startswith(_without(found))})
    return rows


def _without(found: list[Result]) -> tuple[str, ...]:
    """Return the data sets that have no result."""
    return tuple(name for name in MODELS if all(one["data"] != name for one in found))


def _cells(part: str, own: list[Result], base: list[Result] | None) -> dict[str, str]:
    """Return the cells of a row: means over seeds ± half a 95 % interval."""
    cells: dict[str, str] = {"seeds": ", ".join(str(one["seed"]) for one in own) or NOT_RUN}
    for name, cell in _COLUMNS[part].items():
        cells[name] = cell(own) if own else ""
    if part == "statistics":
        cells["less the first row's"] = _gain(own, base)
    if part in ("attacks", "strongest"):
        cells["at equal time"] = _equal_time(own, base)
    return cells


def _mean(key: str | Callable[[Result], float], form: str = ".3f") -> Callable[[list[Result]], str]:
    def cell(own: list[Result]) -> str:
        found = [one.get(key) if isinstance(key, str) else key(one) for one in own]
        values = [value for value in found if value is not None]
        return plus_minus(*_interval(values), form) if values else ""

    return cell


def _each(key: str) -> Callable[[list[Result]], str]:
    return lambda own: ", ".join(f"{one[key]:.2g}" for one in own if one.get(key) is not None)


def _largest(key: str) -> Callable[[list[Result]], str]:
    return lambda own: f"{max(one[key] for one in own):.2g}"


def _effect_over_error(one: Result) -> float:
    """Return the mean effect over its standard deviation in redraws of the design."""
    return _POWER * math.log(one["mean"]) / math.log(one["detectable"])


def _gain(own: list[Result], base: list[Result] | None) -> str:
    """Return how much more effect over error there is than in the first row, over the same seeds."""
    by = {one["seed"]: _effect_over_error(one) for one in base or []}
    values = [_effect_over_error(one) - by[one["seed"]] for one in own if one["seed"] in by]
    return plus_minus(*_interval(values), "+.1f", ".1f") if values and own is not base else ""


def _equal_time(own: list[Result], base: list[Result] | None) -> str:
    """Return the effect over its error that as many seconds as the first row's would give."""
    by = {one["seed"]: one["seconds_a_model"] for one in base or []}
    values = [
        _effect_over_error(one) * (by[one["seed"]] / one["seconds_a_model"]) ** 0.5
        for one in own
        if one["seed"] in by
    ]
    return plus_minus(*_interval(values), ".1f") if values else ""


_EXPOSURE = {
    "mean factor": _mean("mean"),
    "p of the set, largest": _largest("p_value"),
    "AUC": _mean("auc"),
    "AUC of the loss": _mean("membership_auc"),
}
_SET = {
    "mean factor": _mean("mean"), "AUC": _mean("auc"),
    "effect / error": _mean(_effect_over_error, ".1f"),
}  # fmt: skip
_FLAGGED = {"flagged": _mean("share"), "count": _each("flagged")}
_COLUMNS: dict[str, dict[str, Callable[[list[Result]], str]]] = {
    "power": {
        **_FLAGGED,
        **_EXPOSURE,
        "effect / error": _mean(_effect_over_error, ".1f"),
        "detectable, set": _mean("detectable"),
        "detectable, image": _mean("detectable_image", ".2f"),
        "spread of effects": _mean("between_images"),
        "halves of pairs": _mean("halves", ".2f"),
        "accuracy out": _mean("accuracy_out"),
        "given model, p": _each("given_p_value"),
    },
    "repeated": {
        "recall": _mean("recall", ".2f"),
        "AUC against the others": _mean("auc_repeated"),
        "others flagged": _each("others_flagged"),
        "effect, repeated": _mean("effect_repeated"),
        "effect, others": _mean("effect_others"),
        "accuracy out": _mean("accuracy_out"),
    },
    "null": {
        "any flag": _mean("any_flag"),
        "planted: false": _mean("planted_false"),
        "planted: found": _mean("planted_recall"),
    },
    "defences": {
        **_FLAGGED, **_EXPOSURE, "accuracy in": _mean("accuracy_in"),
        "accuracy out": _mean("accuracy_out"), "s a model": _mean("seconds_a_model", ".1f"),
    },
    "statistics": {**_FLAGGED, **_SET},
    "attacks": {**_FLAGGED, **_SET, "s a model": _mean("seconds_a_model", ".1f")},
    "strongest": {**_FLAGGED, **_SET, "s a model": _mean("seconds_a_model", ".1f")},
}  # fmt: skip


def figures(found: list[Result]) -> dict[str, Any]:
    """Return the numbers that people compare: shares flagged, correlations, recall."""
    named: dict[str, Any] = {}

    def add(name: str, part: str, key: str, **where: Any) -> None:
        own = [
            one[key]
            for one in found
            if one["part"] == part and all(one[k] == v for k, v in where.items())
        ]
        if own:
            named[name], half = interval(own)
            if half is not None:
                named[f"{name}_half"] = half

    for models in (24, 48):
        add(f"digits_share_flagged_{models}", "power", "share", data="digits", arm=str(models))
        arm = f"{models}, {IN_POWER[-1]}"
        add(f"digits_share_flagged_{models}_pixel", "power", "share", data="digits", arm=arm)
    for arm, end in (("50", ""), (f"50, {IN_POWER[-1]}", "_pixel")):
        add(f"repeated_50_recall{end}", "repeated", "recall", arm=arm)
        add(f"repeated_50_auc{end}", "repeated", "auc_repeated", arm=arm)
    for arm, end in (("nearest", ""), (IN_NULL[-1], "_pixel")):
        add(f"null_any_flag{end}", "null", "any_flag", arm=arm)
        add(f"null_planted_false{end}", "null", "planted_false", arm=arm)
    return named


def figure(found: list[Result], path: Path) -> None:
    """Plot flagged digits by number of models and statistic, and exposure against accuracy by defence."""
    power = [one for one in found if one["part"] == "power" and one["data"] == "digits"]
    defences = [one for one in found if one["part"] == "defences"]
    if not power:
        return
    plots, axes = pyplot().subplots(
        1, 2 if defences else 1, figsize=(9.2 if defences else 5.2, 3.6), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    first = axes[0][0]
    for name, colour, mark in ((_FIRST, "#6b7280", "o"), (IN_POWER[-1], "#2563a8", "s")):
        own = [o for o in power if o["arm"] == str(o["models"]) + f", {name}" * (name != _FIRST)]
        for seed in sorted({one["seed"] for one in own}):
            line = sorted((o["models"], 100 * (o["share"] or 0)) for o in own if o["seed"] == seed)
            label = name if seed == min(one["seed"] for one in own) else None
            first.plot(*zip(*line, strict=True), f"{mark}-", color=colour, alpha=0.7, label=label)
    first.set_xlabel("shadow models")
    first.set_ylabel("private digits flagged, %")
    first.set_xticks(sorted({one["models"] for one in power}))
    first.legend(frameon=False, fontsize=8, title="a line for each seed", title_fontsize=8)
    if defences:
        second = axes[0][1]
        for i, arm in enumerate(dict.fromkeys(one["arm"] for one in defences)):
            own = [one for one in defences if one["arm"] == arm]
            second.plot(
                [one["accuracy_out"] for one in own], [one["mean"] for one in own], "osD^vP*"[i % 7],
                label=arm,
            )  # fmt: skip
        second.axhline(1.0, color="#9ca3af", linewidth=0.8)
        second.set_xlabel("accuracy on images that were left out")
        second.set_ylabel("mean exposure, factor")
        second.legend(frameon=False, fontsize=8)
    save_figure(plots, path)
