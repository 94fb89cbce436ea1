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
trained-class the same with each repeated image as a class of its own, with other holdout images of the digit
reference     the trained leaks with other covariates: none, distances to public images, and the same attack on
              models that have seen public images alone (three seeds)

Beside the AUC of the two trained leaks: the distance to the nearest reconstruction, to the image as the prior
itself can draw it (the floor of any attack with it) and to the nearest public image; how well the target's loss
tells the repeated images; and how many are flagged if what the prior can draw is added to the reconstructions.

Each whole attack leaves a small JSON file under --evidence and a run folder under --work; a stopped
benchmark continues from them.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, replace
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
from controls_beside import STEPS, auc, beside
from controls_reference import MODELLED, MODELS, reference
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
from inversight.core.config import from_mapping
from inversight.core.console import Terminal
from inversight.core.device import pick_device
from inversight.core.run import read_manifest
from inversight.data import ImageSet, write_images
from inversight.pipeline.context import Context
from inversight.pipeline.train import train
from inversight.settings import AuditSettings, Training, resolve
from study import audit_arm

TRAINED = ("trained-leak", "trained-class")
PARTS = ("null", "covariates", "bursts", "planted", "no-leak", *TRAINED, "reference")
GAPS = ("distance_gap", "leakage_gap")
PRIVATE, HOLDOUT, THIRD, REPEATS = 10, 40, 20, 50
"""Number of digits of each class in whole attacks (the rest is public), and how often a leaked image is
repeated in training. In trained-class as many holdout images again are those of the repeated images."""

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

_CLASS_ATTACK: dict[str, Any] = {"truncation": 1.0, "steps": 300}
"""Changes of the attack for trained-class: the whole prior, and six times the steps."""

_SMALL_TARGET: dict[str, Any] = {"epochs": 4, "width": 4}
_SMALL: dict[str, Any] = {
    "public_training": {"epochs": 2, "width": 4},
    "evaluator_training": {"epochs": 1, "width": 4},
    "prior": {"steps": 12, "batch_size": 8, "width": 4},
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
        for part in ("no-leak", *TRAINED):
            if part in options.parts:
                seeds = options.leak_seeds if part in TRAINED else options.seeds
                rows += _attacked(part, seeds, figures, options)
        if "reference" in options.parts:
            for part in TRAINED:
                rows += _references(part, figures, options)
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
    arguments = parser(__doc__ or "", small=False)
    arguments.add_argument(
        "--parts", type=listed, help="default all; with --tiny all but trained-leak, reference"
    )
    arguments.add_argument(
        "--seeds", type=int, default=None, help="for planted and no-leak; default 20"
    )
    arguments.add_argument(
        "--leak-seeds", type=int, default=None, help="for the trained leaks; default 5"
    )
    arguments.add_argument("--work", type=Path, help="run folders")
    arguments.add_argument("--evidence", type=Path, default=Path("docs/controls"))
    arguments.add_argument("--figures", type=Path, default=Path("docs/images"))
    arguments.add_argument("--table", action="store_true", help="run no attack")
    options = arguments.parse_args()
    options.parts = options.parts or [
        part for part in PARTS if not (options.small and part in ("trained-leak", "reference"))
    ]
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
        if not options.table and not is_current(file, _digest(part, options.small)):
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
            **{f"{gap} p": one[gap]["p_value"] for gap in GAPS if gap in one},
            "minutes": one["minutes"],
        }
        if part in TRAINED:
            row["auc"] = auc(one["p_repeated"], one["p_others"])
            row["recall"] = float(np.mean([q <= RATE for q in one["q_repeated"]]))
            row |= _beside_row(one)
        rows.append(row)
    if part == "no-leak":
        figures["no_leak_seeds_flagged"] = sum(one["flagged"]["count"] > 0 for one in found)
        figures["no_leak_seeds"] = len(found)
    else:
        name = part.replace("-", "_")
        figures[f"{name}_auc"], figures[f"{name}_auc_half"] = interval([row["auc"] for row in rows])
    return rows


def _beside_row(one: dict[str, Any]) -> dict[str, Any]:
    """Return the cells beside the AUC; results from before they were measured say so."""
    names = ("attack", "inverted", "public", "loss_auc")
    known = one.get("beside")
    if known is None:
        return dict.fromkeys((*names, "oracle flagged", "oracle auc"), "not run")
    oracle, count = known["oracle"], len(one["p_repeated"])
    flags = f"{oracle['flagged']} of {count}, {oracle['flagged_others']} others"
    return {**{n: known[n] for n in names}, "oracle flagged": flags, "oracle auc": oracle["auc"]}


def _digest(part: str, small: bool) -> str:
    # The first results were kept without naming the truncation.
    attack = {k: v for k, v in _ATTACK["attack"][0].items() if k != "truncation"}
    values = [{**_ATTACK, "attack": [attack]}, _TARGET, PRIVATE, HOLDOUT, THIRD, REPEATS, small]
    if part in TRAINED:
        values += ["beside", part, _CLASS_ATTACK]
    return digest(values)


@dataclass(frozen=True)
class _Whole:
    """A whole attack: its folder, the settings of its audit, and the ids of the repeated images."""

    home: Path
    settings: AuditSettings
    repeated: list[str]

    @property
    def run(self) -> Path:
        return self.home / "run"


def _whole(part: str, seed: int, options: argparse.Namespace) -> _Whole:
    """Write the images of one whole attack and train its target, unless they are there."""
    stamp, own_class = _digest(part, options.small), part == "trained-class"
    home = options.work / f"{part}-{seed}-{stamp}"
    sizes = (PRIVATE, HOLDOUT, HOLDOUT if own_class else THIRD)
    private, holdout, third, public = drawn(everything(), sizes, seed)
    leaked = _firsts(private)
    if own_class:
        ids = [_own_class(name) if i in leaked else name for i, name in enumerate(private.ids)]
        private = replace(private, ids=tuple(ids))
    repeated = [private.ids[i] for i in leaked]
    seen = third if part == "no-leak" else private
    for name, images in (("private", private), ("holdout", holdout), ("public", public)):
        write_images(home / name, images.images, images.ids)
    if own_class:
        write_images(home / "holdout", third.images, [_own_class(name) for name in third.ids])
    write_images(home / "seen", seen.images, seen.ids)
    for copy in range(1, REPEATS if part in TRAINED else 1):
        names = [f"{name.removesuffix('.png')}-{copy}.png" for name in repeated]
        write_images(home / "seen", private.images[leaked], names)
    if not (home / "target").is_dir():
        context = Context(seed, pick_device("auto"), Terminal())
        training = _training(options.small)
        train(home / "seen", home / "target", size=None, given=training, context=context)
    given = {**_ATTACK, "seed": seed}
    if own_class:
        given["attack"] = [{**_ATTACK["attack"][0], **_CLASS_ATTACK}]
    if options.small:
        given |= _SMALL
    given |= {name: home / name for name in ("private", "holdout", "public")}
    return _Whole(home, resolve({**given, "target": str(home / "target")}), repeated)


def _training(small: bool) -> dict[str, Any]:
    return {**_TARGET, **(_SMALL_TARGET if small else {})}


def _attack(part: str, seed: int, file: Path, options: argparse.Namespace) -> None:
    """Run one whole attack and write what is kept of it."""
    whole = _whole(part, seed, options)
    result = audit_arm(whole.settings, whole.run, whole.run)
    minutes = sum(s["seconds"] for s in read_manifest(whole.run)["stages"]) / 60
    told = result.samples["id"].isin(whole.repeated)
    facts = {
        "control": part,
        "seed": seed,
        "settings": _digest(part, options.small),
        "minutes": round(minutes, 2),
        "machine": machine(seed),
        "flagged": result.metrics["flagged"],
        **{gap: result.metrics[gap] for gap in GAPS},
        **_values(result.samples, "repeated", told),
        **_values(result.samples, "others", ~told),
    }
    if part in TRAINED:
        steps = 5 if options.small else STEPS
        facts["beside"] = beside(
            whole.run, whole.home / "target", whole.settings, whole.repeated, steps=steps
        )
    keep(file, facts)


def _references(
    part: str, figures: dict[str, Any], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Run missing seeds of a trained leak with other covariates; return rows by seed and covariates."""
    rows = []
    for seed in range(options.leak_seeds):
        models = MODELS[part] if seed < MODELLED else {}
        stamp = digest([_digest(part, options.small), models])
        file = options.evidence / f"reference-{part}-{seed}.json"
        if not options.table and not is_current(file, stamp):
            audit = options.evidence / f"{part}-{seed}.json"
            whole = _whole(part, seed, options)
            if not (whole.run / "metrics.json").is_file():
                _attack(part, seed, audit, options)
            training = from_mapping(Training, _training(options.small))
            found = reference(
                whole.run, whole.home / "target", whole.settings, training, whole.repeated,
                models=models,
            )  # fmt: skip
            facts = {"control": "reference", "of": part, "seed": seed, "settings": stamp}
            keep(file, {**facts, "machine": machine(seed), **found})
        if file.is_file():
            kept = json.loads(file.read_text())
            for name, measured in kept["covariates"].items():
                rows.append({"control": part, "seed": seed, "covariates": name, **measured})
    for name in dict.fromkeys(row["covariates"] for row in rows):
        own = [row["auc"] for row in rows if row["covariates"] == name]
        figures[f"{part}, AUC of {len(own)} seeds, covariates {name}"] = float(np.mean(own))
    return rows


def _own_class(name: str) -> str:
    """Return '3-own/x.png' for '3/x.png'."""
    label, _, file = name.partition("/")
    return f"{label}-own/{file}"


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
    leak, alone = ([o for o in found if o["control"] == part] for part in TRAINED)
    groups = {
        "never trained on": none,
        "trained on once": [o["p_others"] for o in leak],
        f"trained on {REPEATS} times": [o["p_repeated"] for o in leak],
        f"trained on {REPEATS} times, as a class of its own": [o["p_repeated"] for o in alone],
    }
    if not any(groups.values()):
        return
    figure, axis = pyplot().subplots(figsize=(6.4, 3.8), layout="constrained")
    axis.plot([0, 1], [0, 1], color="#9ca3af", linewidth=0.8)
    colours = ("#6b7280", "#2563a8", "#c2570c", "#15803d")
    for (name, parts), colour in zip(groups.items(), colours, strict=True):
        values = np.sort([p for part in parts for p in part])
        if len(values):
            shares = np.arange(1, len(values) + 1) / len(values)
            axis.step(values, shares, where="post", color=colour, label=f"{name} ({len(values)})")
    axis.set_xlabel("p value")
    axis.set_ylabel("share of private images at or below")
    axis.legend(frameon=False, fontsize=9, loc="lower right")
    save_figure(figure, options.figures / "controls.png")


if __name__ == "__main__":
    main()
