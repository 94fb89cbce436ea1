"""Which defences help, and what do they cost? Every defence on several data sets and seeds.

uv run python benchmarks/defences.py                                 compute what is missing
uv run python benchmarks/defences.py --datasets digits --seeds 0-4   a part of it
uv run python benchmarks/defences.py --table                         print table and figure of existing results

For each data set and seed one audit (that of benchmarks/study.py, without guidance) trains target,
evaluator, public network and prior. `inversight defend` then trains each defended model and attacks it,
white box and black box. Everything differs between seeds, the undefended training too. Results are small
JSON files under --evidence, from which a stopped benchmark continues.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from base_audits import base_audit, base_settings
from common import (
    data_options,
    data_parser,
    digest,
    finish,
    folders,
    holm,
    is_current,
    keep,
    kept,
    listed,
    machine,
    p_of_no_gain,
    pyplot,
    ray_options,
    run_seeds,
    save_figure,
)
from inversight.core.config import build, merge, parse_assignment, to_mapping
from inversight.core.console import Terminal
from inversight.defences.outcomes import NONE, RATIOS, TOLERANCE, interval
from inversight.pipeline.defend import BLACK_BOX, defend
from inversight.settings import DEFENCES
from study import digest_of
from study_data import DATASETS

SHOWN = {
    "holdout_accuracy": "accuracy",
    "ddcs_best": "DDCS",
    "leakage_gap": "gap",
    "flagged": "flagged",
    "accuracy_top1": "top-1",
    "distance": "distance",
    "distance_protected": "protected",
}
"""Measures in the table and their short names."""
SMALL_DEFENCES = ("removal", "purification")
BLACK_BOX_BUDGETS: dict[str, dict[str, Any]] = {
    "faces-32": {"searches": 12, "generations": 12, "keep": 10, "crops": 10}
}
"""Budgets of the black-box attack, where they differ from the preset's."""
SMALL_BLACK_BOX: dict[str, Any] = {
    "pool": 300, "searches": 4, "population": 4, "generations": 3, "keep": 4, "crops": 4,
}  # fmt: skip


def main() -> None:
    options = _options()
    with folders(options, usual="benchmarks/out/study", temporary=("evidence", "figure")):
        if not options.table:
            run_seeds(_seed, options)
        found = kept(options, "*/*.json")
        rows = table(found)
        figure(rows, options.figure)
        figures = {
            f"{row['data']}_{row['defence']}_{measure}_change": row[f"{measure}_change"]["mean"]
            for row in rows
            for measure in ("ddcs_best", "holdout_accuracy")
            if f"{measure}_change" in row
        }
        figures |= levels(found) | corrected(found)
        finish(f"defences, seeds {options.seeds}", figures, [_cells(r) for r in rows], options)


def _options() -> argparse.Namespace:
    datasets = ("faces-32", "vehicles-same")
    arguments = data_parser(__doc__ or "", datasets=datasets, evidence="docs/defences")
    ray_options(arguments)
    arguments.add_argument("--defences", default=",".join(DEFENCES), type=listed)
    arguments.add_argument("--figure", type=Path, default=Path("docs/images/defences.png"))
    arguments.add_argument(
        "--set", action="append", default=[], metavar="DEFENCE.SETTING=VALUE", help="one to try"
    )
    options = data_options(arguments, known=DATASETS, seeds="0-2", small_seeds="0-1")
    if options.small:
        options.defences = list(SMALL_DEFENCES)
    return options


def _seed(name: str, seed: int, options: argparse.Namespace) -> None:
    """Run the missing defences of one data set and seed."""
    settings: dict[str, Any] = {}
    for text in options.set:
        settings = merge(settings, parse_assignment(text))
    base = base_settings(name, seed, data=options.data, work=options.work, small=options.small)
    missing, stamps = [], {}
    for defence in [NONE, *options.defences]:
        spec = {"class": defence, **settings.get(defence, {})}
        stamps[defence] = _stamp(base, spec, _black_box(name, options.small))
        if not is_current(_file(options, name, defence, seed), stamps[defence]):
            missing.append(spec)
    wanted = [spec for spec in missing if spec["class"] != NONE]
    if not missing:
        return
    run = base_audit(name, seed, data=options.data, work=options.work, small=options.small)
    result = defend(
        run, wanted or [{"class": options.defences[0]}], out=run.parent / "defences",
        attacks=[_black_box(name, options.small)], reporter=Terminal(),
    )  # fmt: skip
    for row in result.found["defences"]:
        facts = {
            "data": name,
            "defence": row["name"],
            "level": row["level"],
            "seed": seed,
            "settings": stamps[row["name"]],
            "failed": row["failed"],
            "minutes": row["minutes"],
            "protected": result.found["protected"],
            "attacks": result.found["attacks"],
            "measures": {k: v["mean"] for k, v in row["measures"].items()},
            "exposure": row["images"] and {k: _count(v) for k, v in row["images"].items()},
            "masked": row["masked"],
            "facts": row["facts"],
            "machine": machine(seed),
        }
        keep(_file(options, name, row["name"], seed), facts)


def _count(value: int | list[str]) -> int:
    return len(value) if isinstance(value, list) else value


def _black_box(name: str, small: bool) -> dict[str, Any]:
    return {"class": BLACK_BOX, **(SMALL_BLACK_BOX if small else BLACK_BOX_BUDGETS.get(name, {}))}


def _stamp(base: Any, spec: dict[str, Any], black_box: dict[str, Any]) -> str:
    """Return a hash of everything that a result depends on."""
    own = {} if spec["class"] == NONE else to_mapping(build(spec, DEFENCES, role="--defence"))
    return digest([digest_of(base), own, black_box])


def _file(options: argparse.Namespace, data: str, defence: str, seed: int) -> Path:
    file: Path = options.evidence / data / f"{defence}-{seed}.json"
    return file


def _changes(found: list[dict[str, Any]], data: str, defence: str, key: str) -> dict[int, float]:
    """Return by seed the difference to the undefended model; for distances the ratio."""
    by = {(o["defence"], o["seed"]): o["measures"] for o in found if o["data"] == data}
    changes = {}
    for (name, seed), own in by.items():
        base = by.get((NONE, seed))
        if name == defence and base is not None and key in own and key in base:
            changes[seed] = own[key] / base[key] if key in RATIOS else own[key] - base[key]
    return changes


def table(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each data set and defence: means over seeds, and changes with 95 % intervals."""
    rows = []
    order = {name: i for i, name in enumerate([NONE, *DEFENCES])}
    for data in dict.fromkeys(o["data"] for o in found):
        names = sorted(
            {o["defence"] for o in found if o["data"] == data}, key=lambda n: order.get(n, 99)
        )
        for name in names:
            own = [o for o in found if o["data"] == data and o["defence"] == name]
            done = [o for o in own if o["failed"] is None]
            row: dict[str, Any] = {
                "data": data,
                "defence": name,
                "level": own[0]["level"],
                "seeds": len(done),
                "failed": next((o["failed"] for o in own if o["failed"]), ""),
                "masked": sum(1 for o in done if o["masked"]),
                "minutes": round(statistics.fmean(o["minutes"] for o in own), 2),
            }
            for key in SHOWN:
                values = [o["measures"][key] for o in done if key in o["measures"]]
                if values:
                    row[key] = statistics.fmean(values)
                if name != NONE and values:
                    row[f"{key}_change"] = interval(list(_changes(found, data, name, key).values()))
            rows.append(row)
    return rows


def corrected(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how many changes of DDCS and gap exclude 0, and those that do after Holm's correction."""
    p = {}
    for data, name in dict.fromkeys((o["data"], o["defence"]) for o in found):
        for key in ("ddcs_best", "leakage_gap"):
            changes = list(_changes(found, data, name, key).values())
            value = p_of_no_gain(changes)
            if name != NONE and value is not None:
                p[data, name, key] = value
    kept = [" ".join(key) for key, value in holm(p).items() if value <= 0.05]
    return {
        "comparisons": len(p),
        "intervals_without_0": sum(value <= 0.05 for value in p.values()),
        "after_holm": "; ".join(kept) or "none",
    }


def levels(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare sample-level with model-level defences at equal accuracy.

    Only defences that cost at most the tolerance of holdout accuracy (mean over seeds) count. Returns the
    average change by each level's defences, and their difference with its 95 % interval over seeds.
    """
    figures: dict[str, Any] = {}
    for data in dict.fromkeys(o["data"] for o in found):
        fine: dict[str, list[str]] = {}
        for level in ("sample", "model"):
            names = sorted(
                {o["defence"] for o in found if o["data"] == data and o["level"] == level}
            )
            costs = {n: _changes(found, data, n, "holdout_accuracy") for n in names}
            fine[level] = [
                n
                for n, c in costs.items()
                if c and statistics.fmean(c.values()) >= -TOLERANCE - 1e-9
            ]
            figures[f"{data}_{level}_level_at_equal_accuracy"] = ", ".join(fine[level])
        if not all(fine.values()):
            continue
        for key in ("ddcs_best", "leakage_gap", "distance_protected"):
            means = {}
            for level, names in fine.items():
                changes = [_changes(found, data, n, key) for n in names]
                seeds = set.intersection(*(set(c) for c in changes))
                means[level] = {s: statistics.fmean(c[s] for c in changes) for s in seeds}
                if means[level]:
                    value = statistics.fmean(means[level].values())
                    figures[f"{data}_{level}_level_{key}_change"] = value
            shared = sorted(means["sample"].keys() & means["model"].keys())
            gap = interval([means["sample"][s] - means["model"][s] for s in shared])
            if gap["mean"] is not None:
                figures[f"{data}_sample_minus_model_{key}"] = gap["mean"]
                figures[f"{data}_sample_minus_model_{key}_bounds"] = [gap["low"], gap["high"]]
    return figures


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    cells = {k: row[k] for k in ("data", "defence", "level", "seeds")}
    for key, name in SHOWN.items():
        text = "" if key not in row else f"{row[key]:.3g}"
        change = row.get(f"{key}_change")
        if change is not None and change["mean"] is not None:
            half = "" if change["high"] is None else f" ± {change['high'] - change['mean']:.2g}"
            sign = "x" if key in RATIOS else ""
            text += f" ({sign}{change['mean']:{'.3g' if sign else '+.2g'}}{half})"
        cells[name] = text
    cells["masked"] = row["masked"]
    cells["failed"] = row["failed"]
    return cells


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot the change of DDCS against that of holdout accuracy, one panel for each data set."""
    plt = pyplot()
    data = list(dict.fromkeys(row["data"] for row in rows))
    names = [n for n in DEFENCES if any(r["defence"] == n for r in rows)]
    fig, axes = plt.subplots(
        1, len(data), figsize=(4.6 * len(data), 4.6), squeeze=False, layout="constrained"
    )
    colours = plt.get_cmap("tab20")
    marks = {"sample": "o", "model": "s", "output": "^"}
    for axis, one in zip(axes[0], data, strict=True):
        axis.axhline(0.0, color="0.6", linewidth=0.8)
        axis.axvline(0.0, color="0.6", linewidth=0.8)
        for row in rows:
            if row["data"] != one or row["defence"] == NONE or "ddcs_best_change" not in row:
                continue
            x, y = row["holdout_accuracy_change"], row["ddcs_best_change"]
            bars = {
                k: None if c["high"] is None else [[c["high"] - c["mean"]]] * 2
                for k, c in (("xerr", x), ("yerr", y))
            }
            axis.errorbar(
                x["mean"], y["mean"], **bars, fmt=marks.get(row["level"], "o"), capsize=2,
                elinewidth=0.7, color=colours(names.index(row["defence"]) % 20),
                label=row["defence"],
            )  # fmt: skip
        axis.set_title(one)
        axis.set_xlabel("change of holdout accuracy")
        axis.locator_params(axis="x", nbins=5)
    axes[0][0].set_ylabel("change of DDCS, best (lower is better)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    save_figure(fig, path)


if __name__ == "__main__":
    main()
