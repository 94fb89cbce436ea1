"""The arm `projected`: the network of its discriminator, its weight and its step size.

uv run python benchmarks/projected.py                                  compute what is missing
uv run python benchmarks/projected.py --datasets digits --seeds 0-2    a part of it
uv run python benchmarks/projected.py --table                          print the table of existing results

vanilla     the same adaptation without the second discriminator
target      the arm as it is; `target, weight W` and `target, rate R` with another weight or step size
public      the attacker's own network instead of the target: needs no target
evaluator   another network trained on the private images
untrained   the target's architecture with random weights

On the targets and priors of base_audits.py, attacked three times by Plug & Play as in the quick preset, with
different random numbers. Settings were chosen on seeds 0-4. Results are JSON files under --evidence, one for
each seed and data set.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from attack_problem import MEASURES, STEPS, AttackProblem
from common import machine
from inversight.adaptation import adapt
from inversight.attacks import run_attack
from inversight.core.seeding import generator
from inversight.models.networks import SavedClassifier, build_classifier, load_classifier
from inversight.models.target import Target, target_of
from inversight.settings import Adaptation
from seed_by_seed import Measures, gains, run
from study import BASE

VARIANTS: dict[str, tuple[str, dict[str, float]]] = {
    BASE: ("target", {"weight": 0.0}),
    "target": ("target", {}),
    "public": ("public-network", {}),
    "evaluator": ("evaluator", {}),
    "untrained": ("untrained", {}),
    "target, weight 1": ("target", {"weight": 1.0}),
    "target, weight 10": ("target", {"weight": 10.0}),
    "target, rate 2e-4": ("target", {"projected_learning_rate": 2e-4}),
    "target, rate 2e-3": ("target", {"projected_learning_rate": 2e-3}),
}
IN_SMALL = (BASE, "target", "untrained")
ATTACKS = 3
SHOWN = ("ddcs_best", "covered", "coverage", "frechet", "knn_distance", "accuracy_top1")


def main() -> None:
    run(
        "network of the projected discriminator", __doc__ or "", datasets=tuple(STEPS),
        seeds="0-2", evidence="docs/projected", work="benchmarks/out/defences",
        measure=measured, rows=rows,
    )  # fmt: skip


def measured(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the mean measures of each variant over the attacks, for one data set and seed."""
    problem = AttackProblem.load(
        name, seed, data=options.data, work=options.work, small=options.small
    )
    attack = problem.attack("plug-and-play", truncation=1.0)
    repetitions = 1 if options.small else ATTACKS
    measures: Measures = {}
    for variant in IN_SMALL if options.small else VARIANTS:
        through, changes = VARIANTS[variant]
        prior = adapt(
            problem.trained, network(problem, through), problem.public.images, arm="projected",
            adaptation=replace(
                Adaptation(steps=6 if options.small else STEPS[name]), **changes
            ),
            training=problem.trained.training, rng=generator(seed, "adaptation"),
        )  # fmt: skip
        found = []
        for repetition in range(repetitions):
            rng = generator(seed, "attack", repetition)
            reconstructions = run_attack(attack, problem.target, prior, problem.labels, rng=rng)
            found.append(problem.scored(reconstructions)[0])
        measures[variant] = means(found)
    return {"data": name, "seed": seed, "machine": machine(seed), "measures": measures}


def network(problem: AttackProblem, name: str) -> Target:
    """Return a network of the base audit; "untrained": the target's architecture with random weights."""
    if name == "target":
        return problem.target
    if name != "untrained":
        return target_of(load_classifier(problem.folder / "stages" / name), name)
    trained = load_classifier(problem.folder / "stages" / "target")
    untrained: SavedClassifier = build_classifier(
        trained.architecture, classes=trained.classes, image_shape=trained.image_shape,
        width=trained.width, mean=list(trained.mean), std=list(trained.std),
        rng=generator(problem.seed, "untrained"),
    )  # fmt: skip
    untrained.module.eval().requires_grad_(False)
    return target_of(untrained, name)


def means(found: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Return the mean of each measure; None where a value is missing."""
    average: dict[str, float | None] = {}
    for measure in MEASURES:
        values = [one.get(measure) for one in found]
        known = [value for value in values if value is not None]
        average[measure] = sum(known) / len(known) if len(known) == len(values) else None
    return average


def rows(name: str, found: list[Measures]) -> list[dict[str, Any]]:
    """Return means over seeds, and gains over the adaptation without it."""
    variants = tuple(one for one in VARIANTS if one in found[0])
    return gains(name, found, what="through", of=variants, over=BASE, shown=SHOWN)


if __name__ == "__main__":
    main()
