"""The paper's guidance: how much it weighs, how the natural gradient is damped, how long it lasts.

uv run python benchmarks/guidance.py                                    what is missing
uv run python benchmarks/guidance.py --datasets digits --seeds 5-9
uv run python benchmarks/guidance.py --table                            the table of what is there

Whole audits as benchmarks/study.py makes them, on its targets and priors (--work), one setting of the
adaptation changed in each. Gains are over `vanilla`, for what lasts longer over a `vanilla` that lasts as
long. Each seed and data set leaves a JSON file under --evidence, from which it goes on.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import machine
from inversight.settings import AuditSettings, resolve
from seed_by_seed import Measured, gains, run
from study import BASE, MEASURES, SMALL, audit_arm
from study_data import DATASETS

LONGER = 4
"""How many times as many steps of the adaptation the longer ones have."""
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
"""The arm, and the settings of the adaptation that are changed; less damping takes more products."""
LASTING = tuple(name for name in VARIANTS if name.endswith("times the steps"))
IN_SMALL = (BASE, LONG, LASTING[-1])
SHOWN = (
    "ddcs_best", "covered", "coverage", "recall", "frechet", "knn_distance", "accuracy_top1",
)  # fmt: skip


def main() -> None:
    run(
        "the paper's guidance", __doc__ or "", datasets=tuple(DATASETS), seeds="5-9",
        evidence=Path("docs/guidance"), work=Path("benchmarks/out/study"), measure=measured,
        rows=rows,
    )  # fmt: skip


def measured(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The measures of each variant, of one data set and seed."""
    home = options.work / f"{name}-{seed}"
    measures: Measured = {}
    for variant in IN_SMALL if options.small else VARIANTS:
        folder = home / (BASE if variant == BASE else f"guidance, {variant}")
        settings = settings_of(variant, name, seed, options)
        result = audit_arm(settings, folder, home / BASE)
        measures[variant] = {measure: result[measure]["value"] for measure in MEASURES}
    # The tables and pictures stay, the checkpoints are large.
    for folder in home.glob("guidance, *"):
        shutil.rmtree(folder / "stages", ignore_errors=True)
    return {"data": name, "seed": seed, "machine": machine(seed), "measures": measures}


def settings_of(variant: str, name: str, seed: int, options: argparse.Namespace) -> AuditSettings:
    """The study's settings of an audit, with the variant's changes."""
    arm, changes = VARIANTS[variant]
    given = {**DATASETS[name].given(seed, options.data, options.work), "seed": seed, "arm": arm}
    settings = resolve(given | SMALL if options.small else given)
    if variant in LASTING:
        changes = {**changes, "steps": LONGER * settings.adaptation.steps}
    return replace(settings, adaptation=replace(settings.adaptation, **changes))


def rows(name: str, found: list[Measured]) -> list[dict[str, Any]]:
    """Means over seeds, and gains over an adaptation of the same length that nothing guides."""
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
