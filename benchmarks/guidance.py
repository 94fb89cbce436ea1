"""The paper's guidance: weight, damping of the natural gradient, and length of the adaptation.

uv run python benchmarks/guidance.py                                    compute what is missing
uv run python benchmarks/guidance.py --datasets digits --seeds 5-9      a part of it
uv run python benchmarks/guidance.py --table                            print the table of existing results

Whole audits as in benchmarks/study.py, with its targets and priors (--work); each changes one setting of
the adaptation. Gains are over `vanilla`, for longer adaptations over a `vanilla` of the same length. Results
are JSON files under --evidence, one for each seed and data set.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from typing import Any

from common import machine
from inversight.settings import AuditSettings, resolve
from seed_by_seed import Measures, gains, run
from study import BASE, MEASURES, SMALL, audit_arm
from study_data import DATASETS

LONGER = 4
"""Factor by which the longer adaptations have more steps."""
LONG = f"{BASE}, {LONGER} times the steps"
GUIDED = "natural-gradient"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    BASE: (BASE, {}),
    "entropy": ("entropy", {}),
    "entropy, weight 1": ("entropy", {"weight": 1.0}),
    GUIDED: (GUIDED, {}),
    f"{GUIDED}, weight 0.1": (GUIDED, {"weight": 0.1}),
    f"{GUIDED}, weight 1": (GUIDED, {"weight": 1.0}),
    f"{GUIDED}, weight 3": (GUIDED, {"weight": 3.0}),
    f"{GUIDED}, damping 0.01": (GUIDED, {"damping": 0.01, "iterations": 10}),
    f"{GUIDED}, damping 1": (GUIDED, {"damping": 1.0}),
    f"{GUIDED}, top eigenspace": (GUIDED, {"preconditioner": "eigen"}),
    LONG: (BASE, {}),
    f"entropy, {LONGER} times the steps": ("entropy", {}),
    f"{GUIDED}, {LONGER} times the steps": (GUIDED, {}),
}
"""Arm, and changed settings of the adaptation; less damping takes more products."""
LASTING = tuple(name for name in VARIANTS if name.endswith("times the steps"))
IN_SMALL = (BASE, LONG, LASTING[-1])
SHOWN = (
    "ddcs_best", "covered", "coverage", "recall", "frechet", "knn_distance", "accuracy_top1",
)  # fmt: skip


def main() -> None:
    run(
        "the paper's guidance", __doc__ or "", datasets=tuple(DATASETS), seeds="5-9",
        evidence="docs/guidance", work="benchmarks/out/study", measure=measured,
        rows=rows,
    )  # fmt: skip


def measured(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the measures of each variant for one data set and seed."""
    home = options.work / f"{name}-{seed}"
    measures: Measures = {}
    for variant in IN_SMALL if options.small else VARIANTS:
        folder = home / (BASE if variant == BASE else f"guidance, {variant}")
        settings = settings_of(variant, name, seed, options)
        result = audit_arm(settings, folder, home / BASE)
        measures[variant] = {one: result.metrics[one]["value"] for one in MEASURES}
    # Checkpoints are large; tables and pictures are kept.
    for folder in home.glob("guidance, *"):
        shutil.rmtree(folder / "stages", ignore_errors=True)
    return {"data": name, "seed": seed, "machine": machine(seed), "measures": measures}


def settings_of(variant: str, name: str, seed: int, options: argparse.Namespace) -> AuditSettings:
    """Return the study's settings of an audit, with the variant's changes."""
    arm, changes = VARIANTS[variant]
    given = {**DATASETS[name].given(seed, options.data, options.work), "seed": seed, "arm": arm}
    given["shadows"] = 0
    settings = resolve(given | SMALL if options.small else given)
    if variant in LASTING:
        changes = {**changes, "steps": LONGER * settings.adaptation.steps}
    return replace(settings, adaptation=replace(settings.adaptation, **changes))


def rows(name: str, found: list[Measures]) -> list[dict[str, Any]]:
    """Return means over seeds, and gains over a vanilla adaptation of the same length."""
    short = [one for one in VARIANTS if one in found[0] and one not in LASTING]
    lasting = [one for one in LASTING if one in found[0]]
    return [
        *gains(name, found, what="adaptation", of=[*short, LONG], over=BASE, shown=SHOWN),
        *gains(
            name, found, what="adaptation", of=[one for one in lasting if one != LONG], over=LONG,
            shown=SHOWN,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
