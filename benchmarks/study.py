"""Does guiding the prior help? Arms of the adaptation on several data sets, over seeds.

uv run python benchmarks/study.py                                   compute what is missing
uv run python benchmarks/study.py --datasets digits --seeds 5-9     a part of it
uv run python benchmarks/study.py --ray ADDRESS                     each seed on a Ray cluster (docs/cluster.md)
uv run python benchmarks/study.py --table                           print table and figure of existing results

For each data set and seed one audit trains target, evaluator, public network and prior. Each arm continues
from there: adaptation, attack, scores. An arm's result is a small JSON file under --evidence; a stopped study
continues from these, and a stopped audit from its run folder under --work. Seeds 0-4 are for choosing settings;
reported are seeds 5-9, on which nothing was chosen.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import (
    data_options,
    data_parser,
    digest,
    finish,
    folders,
    holm,
    interval,
    is_current,
    keep,
    kept,
    listed,
    machine,
    p_of_no_gain,
    plus_minus,
    pyplot,
    ray_options,
    run_seeds,
    save_figure,
)
from inversight import AuditResult
from inversight.core.config import merge, parse_assignment, to_mapping
from inversight.core.console import Terminal
from inversight.core.run import Run, read_manifest
from inversight.pipeline.execution import execute
from inversight.pipeline.plan import Plan
from inversight.settings import ARMS, AuditSettings, resolve
from study_data import DATASETS, FACES, PLAIN_DIGITS, PLAIN_PRIOR, DataSet

MEASURES = (
    "ddcs_best",
    "ddcs_average",
    "covered",
    "coverage",
    "density",
    "precision",
    "recall",
    "frechet",
    "knn_distance",
    "accuracy_top1",
)
LOWER_IS_BETTER = ("frechet", "knn_distance")
SHARED = ("target", "evaluator", "public-network", "prior")
BASE = "vanilla"
DEPENDS = (
    "seed", "size", "working_size", "arm", "attack", "prior", "adaptation", "embedding", "features",
    "guidance_embedding", "target_training", "evaluator_training", "public_training",
)  # fmt: skip
"""Settings that a result depends on."""
STUDIED = (
    "vanilla", "entropy", "natural-gradient", "balanced", "statistics", "projected", "diverse",
    "conditional", "vanilla-pivots", "diverse-pivots", "vanilla-tuned", "diverse-tuned",
    "vanilla-sure", "diverse-sure", "conditional-sure", "conditional-all", "conditional-all-sure",
)  # fmt: skip
"""Arms that are compared by default; two more are parts of other attacks."""
PIVOTED, TUNED, SURE = "-pivots", "-tuned", "-sure"
"""Suffixes of arms that also give attacks pivots, as many of a class as they keep: whatever the target's
confidence; the same with the generator tuned to them; only those with a higher target confidence than samples,
with a longer tuning."""
ALL = "conditional-all"
"""``conditional`` with every public image in its predicted class."""
_BEFORE = {"pivots_surer_than": 0.0, "pivots_left": 0.1}
"""Fixed values, before they became settings; the first results were kept with them."""
_NEWER = {"uniform_latents": False, "augmented_guidance": False}
"""Settings of the adaptation that are newer than the first results, which have these values."""
_PIVOTS: dict[str, dict[str, Any]] = {
    PIVOTED: _BEFORE,
    TUNED: {**_BEFORE, "pivots_tuning": 1500},
    SURE: {"pivots_surer_than": 0.5, "pivots_tuning": 4000, "pivots_left": 0.03},
}
"""Settings of the adaptation by suffix of the arm, in addition to the number of pivots."""
_OWN_SETTINGS = {
    "pseudo_labels_": ("pseudo-labels",),
    "target_aware_": ("target-aware",),
    "projected_": ("projected", "diverse", "conditional"),
    "conditional_": ("conditional",),
}
"""Prefixes of settings that only some arms use, and these arms."""
SMALL_ARMS = ("vanilla", "natural-gradient", "conditional-tuned")
"""Arms with --tiny: the paper's, and one with classes, pivots and tuning."""
SMALL: dict[str, Any] = {
    "prior": {"steps": 12, "batch_size": 8, "width": 4},
    "adaptation": {"steps": 6},
    "target_training": {"epochs": 4, "width": 4},
    "evaluator_training": {"epochs": 4, "width": 4},
    "public_training": {"epochs": 2, "width": 4},
    "attack": [
        {"class": "plug-and-play", "pool": 300, "candidates": 8, "keep": 5, "steps": 8, "crops": 4}
    ],
}


def main() -> None:
    options = _options()
    with folders(options, usual="benchmarks/out/study"):
        if not options.table:
            run_seeds(_seed, options)
        rows = table(kept(options, "*/*.json"), options.seeds)
        if not options.small and any(row["arm"] != BASE for row in rows):
            figure(rows, options.figure)
        figures = {
            f"{row['data']}_target_accuracy": ", ".join(f"{a:.3g}" for a in row["target_accuracy"])
            for row in rows
            if row.get("target_accuracy")
        }
        figures |= {
            f"{row['data']}_{row['arm']}_{measure}_gain": row[f"{measure}_gain"]
            for row in rows
            for measure in ("ddcs_best", "coverage", "frechet")
            if row["arm"] != BASE
        }
        figures |= corrected(rows)
        finish(f"arms of the adaptation, seeds {options.seeds}", figures, _shown(rows), options)


def _options() -> argparse.Namespace:
    arguments = data_parser(__doc__ or "", datasets=DATASETS, evidence="docs/evidence")
    ray_options(arguments)
    arguments.add_argument("--arms", default=None, type=listed)
    arguments.add_argument("--figure", type=Path, default=Path("docs/images/evidence.png"))
    arguments.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting to try"
    )
    options = data_options(arguments, known=DATASETS, seeds="5-9", small_seeds="0-1")
    options.arms = options.arms or list(SMALL_ARMS if options.small else STUDIED)
    if BASE not in options.arms:
        options.arms = [BASE, *options.arms]
    return options


def _seed(name: str, seed: int, options: argparse.Namespace) -> None:
    """Run the missing arms of one data set and seed."""
    data = DATASETS[name]
    given = {**data.given(seed, options.data, options.work), "seed": seed, "shadows": 0}
    if options.small:
        given |= SMALL
    for text in options.set:
        given = merge(given, parse_assignment(text))
    settings = {arm: _with_arm(given, arm) for arm in options.arms}
    if options.small:
        settings = {arm: _with_few_pivots(one) for arm, one in settings.items()}
    missing = [
        arm
        for arm in options.arms
        if not is_current(_file(options, data, arm, seed), digest_of(settings[arm], averaged=True))
    ]
    if not missing:
        return
    home = options.work / f"{data.name}-{seed}"
    beside: dict[str, float | None] | None = None
    for arm in [BASE, *(a for a in missing if a != BASE)]:
        started = time.perf_counter()
        result = audit_arm(settings[arm], home / arm, home / BASE)
        row = {name: result.metrics[name]["value"] for name in MEASURES}
        if arm == BASE:
            beside = row
            if arm not in missing:  # run again only because the other arms start from its folder
                continue
        facts = {
            "data": data.name,
            "arm": arm,
            "seed": seed,
            "minutes": round((time.perf_counter() - started) / 60, 2),
            "settings": digest_of(settings[arm], averaged=True),
            "adaptation": to_mapping(settings[arm].adaptation),
            "machine": machine(seed),
            "measures": row,
        }
        if arm == BASE:
            facts["target_accuracy"] = read_manifest(home / BASE)["target"]["private_accuracy"]
        else:
            facts["beside"] = beside
        keep(_file(options, data, arm, seed), facts)
    if not options.small:
        for arm in options.arms:  # checkpoints are large; tables and pictures are kept
            if arm != BASE:
                shutil.rmtree(home / arm / "stages", ignore_errors=True)


def _with_arm(given: dict[str, Any], name: str) -> AuditSettings:
    """Return the settings of an arm, with or without pivots."""
    arm, _, end = name.rpartition("-")
    changed = _PIVOTS.get(f"-{end}")
    if name == ALL:
        settings = resolve({**given, "arm": "conditional"})
        return replace(settings, adaptation=replace(settings.adaptation, conditional_top=0))
    if changed is None:
        return resolve({**given, "arm": name})
    settings = _with_arm(given, arm)
    kept = int(settings.attack[0]["keep"])
    adaptation = replace(settings.adaptation, pivots=kept, **changed)
    return replace(settings, adaptation=adaptation)


def _with_few_pivots(settings: AuditSettings) -> AuditSettings:
    given = settings.adaptation
    few = replace(given, pivots=min(given.pivots, 1), pivots_tuning=min(given.pivots_tuning, 30))
    return replace(settings, adaptation=few)


def audit_arm(settings: AuditSettings, folder: Path, base: Path) -> AuditResult:
    """Run or resume an audit in ``folder``, with the stages that it shares with the one in ``base``."""
    reporter = Terminal()
    plan = Plan.prepare(settings, reporter)
    run = Run.open(folder) if folder.exists() else Run.create(folder, plan.manifest())
    try:
        if folder != base:
            for stage in SHARED:
                # The stages before the adaptation are the same in every arm of a seed.
                if not (folder / "stages" / stage).exists():
                    shutil.copytree(base / "stages" / stage, folder / "stages" / stage)
        with reporter.live():
            return execute(plan, run, reporter)
    finally:
        run.close()


def digest_of(settings: AuditSettings, *, averaged: bool = False) -> str:
    """Return a hash of the settings that results depend on, which folders are not.

    ``averaged``: results depend on the moving average of the adaptation too. Its half-life was the prior's
    own when the first results were kept, but for arms with classes.
    """
    values = {name: to_mapping(settings)[name] for name in DEPENDS}
    values["attack"] = [_as_first_kept(one) for one in values["attack"]]
    newer = (PLAIN_PRIOR | {k: v for k, v in PLAIN_DIGITS.items() if k != "steps"}).items()
    # The first results did not name what were the defaults.
    values["prior"] = {k: v for k, v in values["prior"].items() if (k, v) not in newer}
    if settings.private is not None and settings.private.parent.name.startswith(FACES):
        values["split"] = "drawn"  # the first results have the folders' split, by shot
    # Settings of other arms do not affect the result.
    others = tuple(
        prefix
        for prefix, arms in _OWN_SETTINGS.items()
        if settings.arm not in arms and settings.arm in STUDIED
    )
    if settings.adaptation.pivots == 0:
        others = (*others, "pivots")
    elif settings.adaptation.pivots_tuning == 0:  # newer than the first results
        others = (*others, "pivots_tuning", "pivots_missed", "pivots_left", "pivots_learning_rate")
    values["adaptation"] = {
        k: v for k, v in values["adaptation"].items() if (k, v) not in (_BEFORE | _NEWER).items()
    }
    values["adaptation"] = {
        k: v for k, v in values["adaptation"].items() if not k.startswith(others)
    }
    fraction = values["adaptation"].pop("ema_fraction")
    if averaged and fraction != (0.1 if ARMS[settings.arm].conditional else None):
        values["adaptation"]["ema_fraction"] = fraction
    return digest(values)


def _as_first_kept(attack: dict[str, Any]) -> dict[str, Any]:
    """Return the attack without the paper's values; the first results did not name them."""
    published = (("halvings", 0), ("half", False), ("truncation", 0.5))
    return {k: v for k, v in attack.items() if (k, v) not in published}


def _file(options: argparse.Namespace, data: DataSet, arm: str, seed: int) -> Path:
    file: Path = options.evidence / data.name / f"{arm}-{seed}.json"
    return file


def table(found: list[dict[str, Any]], seeds: list[int]) -> list[dict[str, Any]]:
    """Return a row for each data set and arm: means over seeds, and gains over vanilla with intervals.

    A gain is the mean of paired differences to vanilla, positive where better. An arm is paired with the
    vanilla of the same machine, since another processor trains another prior from the same seed. The row of
    vanilla also has the targets' accuracy on the private images, where it was kept.
    """
    by = {(f["data"], f["arm"], f["seed"]): f["measures"] for f in found}
    beside = {(f["data"], f["arm"], f["seed"]): f["beside"] for f in found if "beside" in f}
    target = {(f["data"], f["seed"]): f["target_accuracy"] for f in found if "target_accuracy" in f}
    rows = []
    for data in DATASETS:
        for arm in dict.fromkeys(a for d, a, _ in by if d == data):
            own = [s for s in seeds if (data, arm, s) in by]
            pairs = [
                (by[data, arm, s], beside.get((data, arm, s), by.get((data, BASE, s)))) for s in own
            ]
            row: dict[str, Any] = {"data": data, "arm": arm, "seeds": len(own)}
            if arm == BASE:
                row["target_accuracy"] = [target[data, s] for s in own if (data, s) in target]
            for name in MEASURES:
                row[name] = statistics.mean(by[data, arm, s][name] for s in own)
                if arm == BASE:
                    continue
                sign = -1.0 if name in LOWER_IS_BETTER else 1.0
                gains = [sign * (mine[name] - base[name]) for mine, base in pairs if base]
                row[f"{name}_gain"], row[f"{name}_half"] = interval(gains)
                row[f"{name}_p"] = p_of_no_gain(gains)
            rows.append(row)
    order = {
        arm: i
        for i, arm in enumerate(
            (*ARMS, ALL, *(arm + end for end in _PIVOTS for arm in (*ARMS, ALL)))
        )
    }
    return sorted(rows, key=lambda r: (list(DATASETS).index(r["data"]), order.get(r["arm"], 99)))


def corrected(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how many gains of the table exclude 0, and those that do after Holm's correction.

    Of all data sets, arms and measures together, and of DDCS alone; differences of at least three seeds.
    """
    found: dict[str, Any] = {}
    for name, measures in (("all", MEASURES), ("ddcs", ("ddcs_best",))):
        p = {
            (row["data"], row["arm"], measure): row[f"{measure}_p"]
            for row in rows
            for measure in measures
            if row["arm"] != BASE and row["seeds"] >= 3 and row[f"{measure}_p"] is not None
        }
        kept = [" ".join(key) for key, value in holm(p).items() if value <= 0.05]
        found |= {
            f"{name}_comparisons": len(p),
            f"{name}_intervals_without_0": sum(value <= 0.05 for value in p.values()),
            f"{name}_after_holm": "; ".join(kept) or "none",
        }
    return found


def _shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    shown = []
    for row in rows:
        cells = {"data": row["data"], "arm": row["arm"], "seeds": row["seeds"]}
        for name in MEASURES:
            gain, half = row.get(f"{name}_gain"), row.get(f"{name}_half")
            text = f"{row[name]:.3g}"
            if gain is not None:
                text += f" ({plus_minus(gain, half, '+.2g', '.2g')})"
            cells[name] = text
        shown.append(cells)
    return shown


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot gains over vanilla in per cent of vanilla's value, one panel for each measure.

    Intervals are drawn for three seeds or more; fewer seeds give a hollow point.
    """
    measures = ("ddcs_best", "coverage", "frechet")
    titles = {"ddcs_best": "DDCS, best", "coverage": "coverage", "frechet": "Fréchet distance"}
    guided = [row for row in rows if row["arm"] != BASE]
    base = {row["data"]: row for row in rows if row["arm"] == BASE}
    arms = list(dict.fromkeys(row["arm"] for row in guided))
    data = list(dict.fromkeys(row["data"] for row in guided))
    places = [
        i + data.index(row["data"]) for i, row in enumerate(guided)
    ]  # a gap between data sets
    fig, axes = pyplot().subplots(
        1, len(measures), figsize=(11, 0.8 + 0.24 * len(places)), sharey=True
    )
    for axis, measure in zip(axes, measures, strict=True):
        for row, y in zip(guided, places, strict=True):
            scale = 100.0 / max(1e-12, abs(base[row["data"]][measure]))
            confidence = row["seeds"] >= 3
            half = row[f"{measure}_half"] if confidence else None
            axis.errorbar(
                row[f"{measure}_gain"] * scale,
                y,
                xerr=None if half is None else half * scale,
                fmt="o",
                color=f"C{arms.index(row['arm'])}",
                markerfacecolor=None if confidence else "white",
                capsize=3,
            )
        axis.axvline(0.0, color="0.4", linewidth=0.8)
        axis.set_title(titles[measure])
        axis.set_xlabel("gain over vanilla, %")
        axis.grid(axis="x", alpha=0.3)
    names = [
        f"{row['data']}  {row['arm']}" + ("" if row["seeds"] >= 3 else f"  (seeds: {row['seeds']})")
        for row in guided
    ]
    axes[0].set_yticks(places, names, fontsize=8)
    axes[0].set_ylim(places[-1] + 0.6, -0.6)
    fig.tight_layout()
    save_figure(fig, path)


if __name__ == "__main__":
    main()
