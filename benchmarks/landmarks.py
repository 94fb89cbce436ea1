"""What scores are worth: images that nobody reconstructed, scored as if an attack had made them.

uv run python benchmarks/landmarks.py                                  what is missing
uv run python benchmarks/landmarks.py --datasets faces-32 --seeds 5-9
uv run python benchmarks/landmarks.py --table                          the table of what is there

random    public images, given out to the classes at random: nobody asked the target anything
surest    of each class the public images that the target is surest of: no prior, no search
holdout   other images of the private classes: about as near as an honest model of a class comes

On the study's data sets, with its targets, as many images of each class as its attack keeps, at the
size at which its priors draw. An attack whose scores are those of `surest` has only chosen.
Each seed and data set leaves a JSON file under --evidence, from which a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attack_problem import Attacked
from common import machine
from inversight.attacks import Reconstructions
from inversight.core.imaging import to_float
from inversight.core.seeding import generator
from inversight.settings import resolve
from seed_by_seed import Measured, run
from study import BASE, MEASURES, SMALL, audit_arm, interval
from study_data import DATASETS

_NETWORKS_ALONE: dict[str, Any] = {
    "prior": {"steps": 1},
    "adaptation": {"steps": 0},
    "attack": [
        {"class": "plug-and-play", "pool": 40, "candidates": 2, "keep": 1, "steps": 1, "crops": 1}
    ],
}
"""Nothing but target, evaluator and public network is used of an audit with these settings."""


def main() -> None:
    run(
        "landmarks", __doc__ or "", datasets=tuple(DATASETS), seeds="5-9",
        evidence=Path("docs/landmarks"), work=Path("benchmarks/out/landmarks"), measure=measured,
        rows=rows,
    )  # fmt: skip


def measured(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The measures of each landmark, of one data set and seed."""
    given: dict[str, Any] = {**DATASETS[name].given(seed, options.data, options.work)}
    given |= {"seed": seed, "arm": BASE} | (SMALL if options.small else {})
    kept = int(resolve(given).attack[0]["keep"])  # type: ignore[index]
    settings = resolve(given | _NETWORKS_ALONE)
    folder = options.work / f"{name}-{seed}"
    audit_arm(settings, folder, folder)
    problem = Attacked.in_run(name, seed, settings, folder)
    measures: Measured = {}
    for landmark, images in landmarks(problem, kept).items():
        _, found = replace(problem, holdout=None).scored(images)
        measures[landmark] = {one: found.metrics[one]["value"] for one in MEASURES}
    return {
        "data": name, "seed": seed, "kept": kept, "machine": machine(seed), "measures": measures,
    }  # fmt: skip


def landmarks(problem: Attacked, kept: int) -> dict[str, Reconstructions]:
    """The images of each landmark, ``kept`` public ones of each class."""
    public = to_float(problem.public.images)
    labels = problem.labels.repeat_interleave(kept)
    rng = generator(problem.seed, "landmarks")
    random = torch.randint(len(public), (len(labels),), generator=rng)
    with torch.no_grad():
        told = torch.cat([problem.target(x).softmax(1) for x in public.split(200)])
    surest = told[:, problem.labels].topk(kept, dim=0).indices.T.flatten()
    found = {"random": _shown(public[random], labels), "surest": _shown(public[surest], labels)}
    if problem.holdout is not None:
        small = problem.holdout.resized(size=problem.public.size, channels=problem.public.channels)
        found["holdout"] = _shown(to_float(small.images), small.labels)
    return found


def _shown(images: Tensor, labels: Tensor) -> Reconstructions:
    nothing = torch.full((len(labels),), float("nan"))
    return Reconstructions(images, labels, latents=nothing, losses=nothing)


def rows(name: str, found: list[Measured]) -> list[dict[str, Any]]:
    """Means over seeds of each landmark, with half of their 95 % intervals."""
    made = []
    for landmark in found[0]:
        row: dict[str, Any] = {"data": name, "images": landmark, "seeds": len(found)}
        for measure in MEASURES:
            mean, half = interval([one[landmark][measure] for one in found])
            row[measure] = f"{mean:.3g}" + ("" if half is None else f" ± {half:.2g}")
        made.append(row)
    return made


if __name__ == "__main__":
    main()
