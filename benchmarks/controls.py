"""Do flags mean what they say? Audits without a leak, planted leaks and trained leaks.

uv run python benchmarks/controls.py                              compute everything that is missing
uv run python benchmarks/controls.py --parts null,covariates,bursts,planted  the parts that train nothing
uv run python benchmarks/controls.py --table                      print table and figures of existing results

null          simulated nearest distances without leakage: the share of audits with any flag at 10 %;
              also unequal proportions of classes, and the leakage gap without leakage
covariates    the same with covariates of the distances, as of public images, and leaks of a known size
bursts        the same with near-copies, such as frames of one film, each alone and as one
planted       digits; reconstructions are moved towards a known tenth of the private images
no-leak       whole attacks on digits; the target is trained on a third set, disjoint from private and
              holdout, so that every flag is a false alarm
trained-leak  whole attacks; the target is trained on the private images, a tenth of them repeated

Each whole attack leaves a small JSON file under --evidence and a run folder under --work; a stopped
benchmark continues from them.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common import (
    digest,
    finish,
    folders,
    interval,
    is_current,
    keep,
    listed,
    machine,
    parser,
    pyplot,
    save_figure,
)
from controls_simulated import (
    RATE,
    burst_gap_rows,
    burst_rows,
    covariate_rows,
    drawn,
    everything,
    gap_rows,
    null_rows,
    planted,
    unequal_rows,
)
from inversight.core.console import Terminal
from inversight.core.device import pick_device
from inversight.core.run import read_manifest
from inversight.data import ImageSet, write_images
from inversight.pipeline.context import Context
from inversight.pipeline.train import train
from inversight.settings import resolve
from study import audit_arm

PARTS = ("null", "covariates", "bursts", "planted", "no-leak", "trained-leak")
PRIVATE, HOLDOUT, THIRD, REPEATS = 10, 40, 20, 50
"""Number of digits of each class in whole attacks (the rest is public), and how often a leaked image is
repeated in training."""

_NO_FLIP: dict[str, Any] = {"flip": False, "rotation": 10.0}
_TARGET: dict[str, Any] = {**_NO_FLIP, "epochs": 200, "patience": 60, "batch_size": 32}
_ATTACK: dict[str, Any] = {
    "embedding": "public",
    "features": "public",
    "guidance_embedding": "public",
    "public_training": {**_NO_FLIP, "epochs": 30, "batch_size": 64},
    # The evaluator is not used here.
    "evaluator_training": {**_NO_FLIP, "epochs": 5},
    "prior": {"steps": 1500},
    "adaptation": {"steps": 300},
    "attack": [
        {
            "class": "plug-and-play",
            "crop_flip": False,
            "pool": 5000,
            "candidates": 40,
            "steps": 50,
            "keep": 20,
            "crops": 30,
            "truncation": 0.5,
        }
    ],
    "fdr": RATE,
}
"""Settings of the quick preset for digits."""

_SMALL_TARGET: dict[str, Any] = {"epochs": 10}
_SMALL: dict[str, Any] = {
    "public_training": {"epochs": 2},
    "evaluator_training": {"epochs": 1},
    "prior": {"steps": 20},
    "adaptation": {"steps": 6},
    "attack": [
        {"class": "plug-and-play", "pool": 300, "candidates": 8, "keep": 5, "steps": 5, "crops": 3}
    ],
}


def main() -> None:
    options = _options()
    with folders(options, usual="benchmarks/out/controls", temporary=("evidence", "figures")):
        rows: list[dict[str, Any]] = []
        figures: dict[str, Any] = {}
        if "null" in options.parts:
            null = null_rows(options.simulations)
            rows += null
            figures["null_most_flagged"] = max(row["flagged"] for row in null)
            gaps = gap_rows(options.simulations)
            rows += unequal_rows(options.simulations) + gaps
            figures["gap_most_below_0.05"] = max(row["p <= 0.05"] for row in gaps)
        if "covariates" in options.parts:
            gains = covariate_rows(max(4, options.simulations // 10))
            rows += gains
            figures |= _of_covariates(gains)
        if "bursts" in options.parts:
            bursts = burst_rows(options.simulations // 4)
            gaps = burst_gap_rows(options.simulations // 4)
            rows += bursts + gaps
            figures["bursts_most_flagged_alone"] = max(r["flagged, images alone"] for r in bursts)
            figures["bursts_most_flagged"] = max(row["flagged"] for row in bursts)
            figures["bursts_least_recall"] = min(row["recall"] for row in bursts)
            figures["bursts_gap_below_0.05_alone"] = gaps[0]["p <= 0.05"]
            figures["bursts_gap_below_0.05"] = gaps[1]["p <= 0.05"]
        if "planted" in options.parts:
            curves, found = _planted(options)
            rows += curves
            figures |= found
            _draw_planted(curves, options.figures / "planted-leak.png")
        for part, seeds in (("no-leak", options.seeds), ("trained-leak", options.leak_seeds)):
            if part in options.parts:
                rows += _attacked(part, seeds, figures, options)
        _draw_attacked(options)
    if not rows:
        raise SystemExit("no results yet")
    columns = dict.fromkeys(name for row in rows for name in row)
    shown = [{name: row.get(name, "") for name in columns} for row in rows]
    finish(f"controls, seeds {options.seeds}", figures, shown, options)


def _of_covariates(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return rates without a leak, and what is found of leaks of three deviations."""
    none = [row for row in rows if row["deviations"] == 0.0]
    figures: dict[str, Any] = {
        "covariates_most_flagged": max(row["flagged"] for row in none),
        "covariates_most_distance_gap": max(row["distance gap, p <= 0.05"] for row in none),
    }
    for row in rows:
        if row["deviations"] == 3.0 and row["private a class"] == 10:
            figures[f"covariates_recall, {row['setting']}"] = row["recall"]
    return figures


def _options() -> argparse.Namespace:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--parts", default=",".join(PARTS), type=listed)
    arguments.add_argument(
        "--seeds", type=int, default=None, help="for planted and no-leak; default 20"
    )
    arguments.add_argument(
        "--leak-seeds", type=int, default=None, help="for trained-leak; default 5"
    )
    arguments.add_argument("--work", type=Path, help="run folders")
    arguments.add_argument("--evidence", type=Path, default=Path("docs/controls"))
    arguments.add_argument("--figures", type=Path, default=Path("docs/images"))
    arguments.add_argument("--table", action="store_true", help="run no attack")
    options = arguments.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        raise SystemExit(f"--parts: expected some of {', '.join(PARTS)}, found {unknown}")
    options.seeds = options.seeds or (2 if options.small else 20)
    options.leak_seeds = options.leak_seeds or (1 if options.small else 5)
    options.simulations = 10 if options.small else 1000
    return options


def _planted(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows of the two curves, and the figures at their last point."""
    images = everything()
    levels = np.linspace(0.0, 1.0, 3 if options.small else 11)
    rows = []
    for of_class in (False, True):
        runs = [planted(images, seed, levels, of_class) for seed in range(options.seeds)]
        for i, level in enumerate(levels):
            row: dict[str, Any] = {
                "control": "planted",
                "setting": "null of each class" if of_class else "null of all classes",
                "level": float(level),
            }
            for name in ("recall", "fdp"):
                row[name], row[f"{name} ±"] = interval([run[i][name] for run in runs])
            rows.append(row)
    last = {row["setting"]: row for row in rows if row["level"] == 1.0}
    pooled, own = last["null of all classes"], last["null of each class"]
    return rows, {
        "planted_recall": pooled["recall"],
        "planted_fdp": pooled["fdp"],
        "planted_recall_of_class": own["recall"],
        "planted_fdp_of_class": own["fdp"],
    }


def _attacked(
    part: str, seeds: int, figures: dict[str, Any], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Run missing seeds; return a row for each seed, and add summaries to ``figures``."""
    found = []
    for seed in range(seeds):
        file = options.evidence / f"{part}-{seed}.json"
        if not options.table and not is_current(file, _digest(options.small)):
            _attack(part, seed, file, options)
        if file.is_file():
            found.append(json.loads(file.read_text()))
    if not found:
        return []
    rows = []
    for one in found:
        flagged = one["flagged"]
        row = {
            "control": part,
            "seed": one["seed"],
            "flagged": flagged["count"],
            "gap p": one["leakage_gap"]["p_value"],
            "minutes": one["minutes"],
        }
        if part == "trained-leak":
            row["auc"] = _auc(one)
            row["recall"] = float(np.mean([q <= RATE for q in one["q_repeated"]]))
        rows.append(row)
    if part == "no-leak":
        figures["no_leak_seeds_flagged"] = sum(one["flagged"]["count"] > 0 for one in found)
        figures["no_leak_seeds"] = len(found)
    else:
        auc, half = interval([row["auc"] for row in rows])
        figures |= {"trained_leak_auc": auc, "trained_leak_auc_half": half}
    return rows


def _auc(one: dict[str, Any]) -> float:
    """Return how often a repeated image has a smaller p value than another private one; ties count half."""
    a, b = np.array(one["p_repeated"])[:, None], np.array(one["p_others"])[None, :]
    return float(((a < b) + 0.5 * (a == b)).mean())


def _digest(small: bool) -> str:
    # The first results were kept without naming the truncation.
    attack = {k: v for k, v in _ATTACK["attack"][0].items() if k != "truncation"}
    values = [{**_ATTACK, "attack": [attack]}, _TARGET, PRIVATE, HOLDOUT, THIRD, REPEATS, small]
    return digest(values)


def _attack(part: str, seed: int, file: Path, options: argparse.Namespace) -> None:
    """Run one whole attack and write what is kept of it."""
    home = options.work / f"{part}-{seed}-{_digest(options.small)}"
    private, holdout, third, public = drawn(everything(), (PRIVATE, HOLDOUT, THIRD), seed)
    leaked = _firsts(private)
    seen = third if part == "no-leak" else private
    copies = REPEATS if part == "trained-leak" else 1
    for name, images in (("private", private), ("holdout", holdout), ("public", public)):
        write_images(home / name, images.images, images.ids)
    write_images(home / "seen", seen.images, seen.ids)
    for copy in range(1, copies):
        names = [f"{private.ids[i].removesuffix('.png')}-{copy}.png" for i in leaked]
        write_images(home / "seen", private.images[leaked], names)
    if not (home / "target").is_dir():
        training = {**_TARGET, **(_SMALL_TARGET if options.small else {})}
        context = Context(seed, pick_device("auto"), Terminal())
        train(home / "seen", home / "target", size=None, given=training, context=context)
    given = {**_ATTACK, **(_SMALL if options.small else {}), "seed": seed}
    given |= {name: home / name for name in ("private", "holdout", "public")}
    folder = home / "run"
    result = audit_arm(resolve({**given, "target": str(home / "target")}), folder, folder)
    minutes = sum(s["seconds"] for s in read_manifest(folder)["stages"]) / 60
    repeated = result.samples["id"].isin([private.ids[i] for i in leaked])
    facts = {
        "control": part,
        "seed": seed,
        "settings": _digest(options.small),
        "minutes": round(minutes, 2),
        "machine": machine(seed),
        "flagged": result.metrics["flagged"],
        "leakage_gap": result.metrics["leakage_gap"],
        **_values(result.samples, "repeated", repeated),
        **_values(result.samples, "others", ~repeated),
    }
    keep(file, facts)


def _firsts(images: ImageSet) -> list[int]:
    """Return a tenth of each class's rows, which are in random order."""
    return [
        int(row)
        for label in images.labels.unique()
        for row in (images.labels == label).nonzero().squeeze(1)[: PRIVATE // 10]
    ]


def _values(samples: pd.DataFrame, name: str, rows: pd.Series) -> dict[str, list[float]]:
    chosen = samples[rows]
    return {
        f"p_{name}": chosen["p_value"].round(6).tolist(),
        f"q_{name}": chosen["q_value"].round(6).tolist(),
    }


def _draw_planted(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot recall and false-discovery proportion against the distance of the planted leak."""
    figure, axis = pyplot().subplots(figsize=(6.4, 3.8), layout="constrained")
    for i, setting in enumerate(dict.fromkeys(row["setting"] for row in rows)):
        own = [row for row in rows if row["setting"] == setting]
        x = [row["level"] for row in own]
        look = {"color": ("#2563a8", "#6b7280")[i], "marker": "os"[i], "capsize": 3}
        for name, line in (("recall", "-"), ("fdp", ":")):
            words = "found" if name == "recall" else "false alarms among the flagged"
            axis.errorbar(
                x, [r[name] for r in own], yerr=[r[f"{name} ±"] or math.nan for r in own],
                linestyle=line,
                label=f"{words}; {setting}", **look,
            )  # fmt: skip
    axis.axhline(RATE, color="#c2570c", linewidth=0.8, label=f"accepted rate, {RATE:g}")
    axis.set_xlabel("planted distance: from the null's median (0) to 0.9 of its smallest (1)")
    axis.set_ylabel("share")
    axis.set_ylim(-0.03, 1.03)
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    save_figure(figure, path)


def _draw_attacked(options: argparse.Namespace) -> None:
    """Plot the share of images below each p value; without leakage it is the diagonal."""
    found = [json.loads(f.read_text()) for f in sorted(options.evidence.glob("*.json"))]
    none = [o["p_repeated"] + o["p_others"] for o in found if o["control"] == "no-leak"]
    leak = [o for o in found if o["control"] == "trained-leak"]
    groups = {
        "never trained on": none,
        "trained on once": [o["p_others"] for o in leak],
        f"trained on {REPEATS} times": [o["p_repeated"] for o in leak],
    }
    if not any(groups.values()):
        return
    figure, axis = pyplot().subplots(figsize=(6.4, 3.8), layout="constrained")
    axis.plot([0, 1], [0, 1], color="#9ca3af", linewidth=0.8)
    colours = ("#6b7280", "#2563a8", "#c2570c")
    for (name, parts), colour in zip(groups.items(), colours, strict=True):
        values = np.sort([p for part in parts for p in part])
        if len(values):
            shares = np.arange(1, len(values) + 1) / len(values)
            axis.step(values, shares, where="post", color=colour, label=f"{name} ({len(values)})")
    axis.set_xlabel("p value")
    axis.set_ylabel("share of private images at or below")
    axis.legend(frameon=False, loc="upper left")
    save_figure(figure, options.figures / "controls.png")


if __name__ == "__main__":
    main()
