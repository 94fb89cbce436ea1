"""Truncation of the prior from which Plug & Play draws its pool: 0.5 as published, or less.

uv run python benchmarks/truncation.py                                  compute what is missing
uv run python benchmarks/truncation.py --datasets digits --seeds 0-2    a part of it
uv run python benchmarks/truncation.py --table                          print the table of existing results

On the targets and priors of base_audits.py, with vanilla adapted as in attacks.py, and the attack of the quick
preset. Results are JSON files under --evidence, one for each seed and data set.
"""

from __future__ import annotations

import argparse
from typing import Any

from attack_problem import MEASURES, STEPS, AttackProblem
from common import machine
from seed_by_seed import Measures, gains, run

TRUNCATIONS = (0.5, 0.7, 1.0)
SHOWN = ("ddcs_best", "covered", "coverage", "frechet", "knn_distance", "accuracy_top1")


def main() -> None:
    run(
        "truncation of Plug & Play's pool", __doc__ or "", datasets=tuple(STEPS), seeds="0-2",
        evidence="docs/truncation", work="benchmarks/out/defences", measure=measured,
        rows=rows,
    )  # fmt: skip


def measured(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the measures at each truncation for one data set and seed."""
    problem = AttackProblem.load(
        name, seed, data=options.data, work=options.work, small=options.small
    ).first_classes(10)
    prior = problem.prior("vanilla", 6 if options.small else STEPS[name])
    measures = {}
    for truncation in TRUNCATIONS:
        attack = problem.attack("plug-and-play", truncation=truncation)
        values, _ = problem.scored(problem.run(attack, prior)[0])
        measures[str(truncation)] = {one: values.get(one) for one in MEASURES}
    return {"data": name, "seed": seed, "machine": machine(seed), "measures": measures}


def rows(name: str, found: list[Measures]) -> list[dict[str, Any]]:
    """Return means over seeds, and gains over the published truncation."""
    truncations = tuple(map(str, TRUNCATIONS))
    return gains(name, found, what="truncation", of=truncations, over="0.5", shown=SHOWN)


if __name__ == "__main__":
    main()
