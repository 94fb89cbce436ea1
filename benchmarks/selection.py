"""Which candidates Plug & Play keeps: the most confident ones, or diverse ones among the more confident half.

uv run python benchmarks/selection.py                                  compute what is missing
uv run python benchmarks/selection.py --datasets digits --seeds 0-2    a part of it
uv run python benchmarks/selection.py --table                          print the table of existing results

On the targets and priors of base_audits.py, with vanilla adapted as in attacks.py, and the attack of the quick
preset without halvings. All ways choose as many of the same candidates: optimised ones, or the same starts as
they are. Results are JSON files under --evidence, one for each seed and data set.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from torch import Tensor

from attack_problem import STEPS, AttackProblem
from common import interval, machine, plus_minus
from inversight.attacks import Reconstructions
from inversight.attacks.selection import farthest_points
from inversight.embeddings.network import PooledEmbedding
from seed_by_seed import Measures, run
from study import LOWER_IS_BETTER

CANDIDATES = (2, 10)
"""Candidates for each one that is kept: about as many as in the presets, and many."""
WAYS = ("confident", "diverse", "diverse in features")
"""The most confident; farthest from each other in pixels (``selection: diverse``), or in the target's last
features."""
SHOWN = (
    "ddcs_best", "covered", "recall", "coverage", "leakage_gap", "frechet", "knn_distance", "accuracy_top1",
)  # fmt: skip


def main() -> None:
    run(
        "which candidates Plug & Play keeps", __doc__ or "", datasets=("digits",), seeds="0-2",
        evidence="docs/selection", work="benchmarks/out/defences", measure=measured,
        rows=rows,
    )  # fmt: skip


def measured(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the measures of each way to choose for one data set and seed."""
    problem = AttackProblem.load(
        name, seed, data=options.data, work=options.work, small=options.small
    ).first_classes(10)
    prior = problem.prior("vanilla", 6 if options.small else STEPS[name])
    measures, seconds = {}, {}
    for each in CANDIDATES:
        for optimised in (True, False):
            plain = problem.attack("plug-and-play", truncation=1.0, halvings=0, half=False)
            count = each * plain.keep
            still = {} if optimised else {"steps": 1, "learning_rate": 1e-9}
            attack = problem.attack(
                "plug-and-play", truncation=1.0, halvings=0, half=False, candidates=count, keep=count,
                **still,
            )  # fmt: skip
            found, taken = problem.run(attack, prior)
            row = f"{count} of a class, {'optimised' if optimised else 'as drawn'}"
            seconds[row] = round(taken, 1)
            for way in WAYS:
                kept = chosen(found, points_of(found, way, problem), plain.keep)
                values, evaluation = problem.scored(kept)
                values["recall"] = evaluation.metrics["recall"]["value"]
                measures[f"{row}: {way}"] = {one: values.get(one) for one in SHOWN}
    facts = {"data": name, "seed": seed, "machine": machine(seed), "seconds": seconds}
    return {**facts, "measures": measures}


@torch.no_grad()
def points_of(found: Reconstructions, way: str, problem: AttackProblem) -> Tensor | None:
    """Return the points (M, D) between which distances are taken; None for the most confident."""
    if way == "confident":
        return None
    if way == "diverse":
        return found.images.flatten(1)
    features = PooledEmbedding("target", problem.target)
    return torch.cat([features(x)[0] for x in found.images.split(200)])


def chosen(found: Reconstructions, points: Tensor | None, keep: int) -> Reconstructions:
    """Return ``keep`` reconstructions of each class, of which ``found`` has the most confident first."""
    rows = []
    for label in found.labels.unique():
        own = (found.labels == label).nonzero().flatten()
        among = own[: max(2 * keep, len(own) // 2)]
        rows.append(own[:keep] if points is None else among[farthest_points(points[among], keep)])
    kept = torch.cat(rows)
    return Reconstructions(
        *(x[kept] for x in (found.images, found.labels, found.latents, found.losses))
    )


def rows(name: str, found: list[Measures]) -> list[dict[str, Any]]:
    """Return means over seeds, and gains over the most confident of the same candidates."""
    table = []
    for variant in found[0]:
        candidates, _, way = variant.partition(": ")
        row: dict[str, Any] = {"data": name, "candidates": candidates, "selection": way}
        for measure in SHOWN:
            values = [seed[variant][measure] for seed in found]
            row[measure] = f"{statistics.mean(values):.3g}"
            if way != WAYS[0]:
                sign = -1.0 if measure in LOWER_IS_BETTER else 1.0
                base = [seed[f"{candidates}: {WAYS[0]}"][measure] for seed in found]
                gains = [sign * (a - b) for a, b in zip(values, base, strict=True)]
                row[measure] += f" ({plus_minus(*interval(gains), '+.2g', '.2g')})"
        table.append(row)
    return table


if __name__ == "__main__":
    main()
