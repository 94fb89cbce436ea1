"""Half-life of the moving average in the adaptation: the prior's own, or at most a tenth of the images.

uv run python benchmarks/moving_average.py                                  compute what is missing
uv run python benchmarks/moving_average.py --datasets digits --seeds 0-1    a part of it
uv run python benchmarks/moving_average.py --table                          print the table of existing results

On the targets and priors of base_audits.py, adapted for 150 steps of 32 images, and with the attack of the
quick preset. Only the average differs, from which attacks draw; the trained networks are the same. Results are
JSON files under --evidence, one for each seed and data set.
"""

from __future__ import annotations

import argparse
from typing import Any

from attack_problem import MEASURES, AttackProblem
from common import machine
from seed_by_seed import Measures, gains, run

STEPS = 150
ARMS = ("vanilla", "entropy", "natural-gradient", "diverse")
FRACTIONS = (None, 0.1)
SHOWN = ("left", "ddcs_best", "covered", "coverage", "frechet", "knn_distance", "accuracy_top1")
"""``left``: the weight that the average has left on the generator before the adaptation."""


def main() -> None:
    run(
        "half-life of the moving average in the adaptation", __doc__ or "", datasets=("digits",),
        seeds="0-1", evidence="docs/moving-average", work="benchmarks/out/defences",
        measure=measured, rows=rows,
    )  # fmt: skip


def measured(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the measures of each arm and half-life for one data set and seed."""
    problem = AttackProblem.load(
        name, seed, data=options.data, work=options.work, small=options.small
    ).first_classes(10)
    steps = 6 if options.small else STEPS
    attack = problem.attack("plug-and-play", truncation=1.0)
    measures = {}
    for arm in ARMS:
        for fraction in FRACTIONS:
            values, _ = problem.scored(
                problem.run(attack, problem.prior(arm, steps, ema_fraction=fraction))[0]
            )
            training = problem.trained.training
            images = steps * training.batch_size
            half_life = min(training.ema_images, (fraction or float("inf")) * images)
            row = {"left": 0.5 ** (images / half_life)}
            row |= {one: values.get(one) for one in MEASURES}
            measures[f"{arm}, {_name(fraction)}"] = row
    return {"data": name, "seed": seed, "machine": machine(seed), "measures": measures}


def rows(name: str, found: list[Measures]) -> list[dict[str, Any]]:
    """Return means over seeds, and gains over the prior's own half-life."""
    return [
        row
        for arm in ARMS
        for row in gains(
            name, found, what="arm, half-life", of=[f"{arm}, {_name(f)}" for f in FRACTIONS],
            over=f"{arm}, {_name(None)}", shown=SHOWN,
        )
    ]  # fmt: skip


def _name(fraction: float | None) -> str:
    return "the prior's" if fraction is None else f"{fraction:g} of the images"


if __name__ == "__main__":
    main()
