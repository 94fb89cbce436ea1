"""What scores are worth: images that were not reconstructed, scored as if they were.

uv run python benchmarks/landmarks.py                                  compute what is missing
uv run python benchmarks/landmarks.py --datasets faces-32 --seeds 5-9  a part of it
uv run python benchmarks/landmarks.py --table                          print the table of existing results

random    public images, assigned to the classes at random, without any query
surest    for each class the public images with the highest target confidence: no prior, no search
holdout   other images of the private classes: about as near as a good model of the class comes

On the study's data sets and targets, with as many images of each class as its attack keeps, at the size of
its priors. An attack with the scores of `surest` has only selected images. Results are JSON files under
--evidence, one for each seed and data set.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attack_problem import AttackProblem
from common import interval, machine, plus_minus
from inversight.attacks import Reconstructions
from inversight.core.imaging import to_float
from inversight.core.seeding import generator
from inversight.settings import resolve
from seed_by_seed import Measures, run
from study import BASE, MEASURES, SMALL, audit_arm
from study_data import DATASETS

_NETWORKS_ALONE: dict[str, Any] = {
    "shadows": 0,
    "prior": {"steps": 1},
    "adaptation": {"steps": 0},
    "attack": [
        {"class": "plug-and-play", "pool": 40, "candidates": 2, "keep": 1, "steps": 1, "crops": 1}
    ],
}
"""Of an audit with these settings only target, evaluator and public network are used."""


def main() -> None:
    run(
        "landmarks", __doc__ or "", datasets=tuple(DATASETS), seeds="5-9",
        evidence="docs/landmarks", work="benchmarks/out/landmarks", measure=measured,
        rows=rows,
    )  # fmt: skip


def measured(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the measures of each landmark for one data set and seed."""
    given: dict[str, Any] = {**DATASETS[name].given(seed, options.data, options.work)}
    given |= {"seed": seed, "arm": BASE} | (SMALL if options.small else {})
    kept = int(resolve(given).attack[0]["keep"])  # type: ignore[index]
    settings = resolve(given | _NETWORKS_ALONE)
    folder = options.work / f"{name}-{seed}"
    audit_arm(settings, folder, folder)
    problem = AttackProblem.from_run(name, seed, settings, folder)
    measures: Measures = {}
    for landmark, images in landmarks(problem, kept).items():
        _, found = replace(problem, holdout=None).scored(images)
        measures[landmark] = {one: found.metrics[one]["value"] for one in MEASURES}
    return {
        "data": name, "seed": seed, "kept": kept, "machine": machine(seed), "measures": measures,
    }  # fmt: skip


def landmarks(problem: AttackProblem, kept: int) -> dict[str, Reconstructions]:
    """Return the images of each landmark, ``kept`` public ones for each class."""
    public = to_float(problem.public.images)
    labels = problem.labels.repeat_interleave(kept)
    rng = generator(problem.seed, "landmarks")
    random = torch.randint(len(public), (len(labels),), generator=rng)
    with torch.no_grad():
        confidence = torch.cat([problem.target(x).softmax(1) for x in public.split(200)])
    surest = confidence[:, problem.labels].topk(kept, dim=0).indices.T.flatten()
    found = {"random": _shown(public[random], labels), "surest": _shown(public[surest], labels)}
    if problem.holdout is not None:
        small = problem.holdout.resized(size=problem.public.size, channels=problem.public.channels)
        found["holdout"] = _shown(to_float(small.images), small.labels)
    return found


def _shown(images: Tensor, labels: Tensor) -> Reconstructions:
    nothing = torch.full((len(labels),), float("nan"))
    return Reconstructions(images, labels, latents=nothing, losses=nothing)


def rows(name: str, found: list[Measures]) -> list[dict[str, Any]]:
    """Return means over seeds of each landmark, ± half of their 95 % intervals."""
    table = []
    for landmark in found[0]:
        row: dict[str, Any] = {"data": name, "images": landmark, "seeds": len(found)}
        for measure in MEASURES:
            values = [one[landmark][measure] for one in found]
            row[measure] = plus_minus(*interval(values), ".3g", ".2g")
        table.append(row)
    return table


if __name__ == "__main__":
    main()
