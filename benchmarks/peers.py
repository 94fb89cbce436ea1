"""ART's MIFace beside the default attack, on the classifier of the digits audit.

uv run --with adversarial-robustness-toolbox python benchmarks/peers.py             compute what is missing
uv run --with adversarial-robustness-toolbox python benchmarks/peers.py --tiny      tiny: whether it runs
uv run python benchmarks/peers.py --table                                           print existing results

For each seed one audit trains the target, trains a prior on the public images, adapts it, attacks and scores:
that is the default attack. ART (Adversarial Robustness Toolbox) attacks the same target by gradient descent on
pixels. Both give as many reconstructions of each class, and one function scores both with the same embedding.

ART's settings are those of its notebook on MNIST: threshold 1, so that the descent never stops early, outputs
that are probabilities, clip_values (0, 1). Each combination of STARTS and LEARNING_RATES is tried. The notebook
starts from constant images, from noise, or from the mean of images. Constant images and means would give one
reconstruction of a class; here each starts from its own noise, or from a public image drawn at random.

Seconds: of ART the descent; of the default attack prior, adaptation and attack.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from attack_problem import AttackProblem
from common import interval, machine, plus_minus
from inversight import AuditResult
from inversight.attacks import Reconstructions
from inversight.core.imaging import to_float
from inversight.core.run import read_manifest
from inversight.core.seeding import generator
from inversight.settings import resolve
from seed_by_seed import Measures, run
from study import SMALL, audit_arm

OURS = "inversight, default attack"
STARTS = ("noise", "public images")
LEARNING_RATES = (0.1, 1.0)
"""ART's default is 0.1."""
ITERATIONS = 200
"""ART's default is 10,000, a quarter of an hour for each row; confidence shows how far the descent came."""
SMALL_ITERATIONS = 20
TIMED = ("prior", "adaptation", "attack")
"""Beginnings of the names of the stages that belong to the default attack."""


def main() -> None:
    run(
        "ART's MIFace beside the default attack", __doc__ or "", datasets=("digits",), seeds="0-2",
        evidence="docs/peers", work="benchmarks/out/peers", measure=measured, rows=rows,
    )  # fmt: skip


def measured(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the measures of both tools for one seed."""
    settings = resolve({"seed": seed, "shadows": 0} | (SMALL if options.small else {}))
    folder = options.work / f"{name}-{seed}"
    result = audit_arm(settings, folder, folder)
    problem = AttackProblem.from_run(name, seed, settings, folder)
    each = int(settings.attack[0]["keep"])
    measures = {OURS: ours(result)}
    iterations = SMALL_ITERATIONS if options.small else ITERATIONS
    for start in STARTS:
        for rate in LEARNING_RATES:
            found, seconds = miface(problem, start, rate, each=each, iterations=iterations)
            values, evaluation = problem.scored(found)
            nearest = evaluation.samples["nearest_distance"]
            measures[f"ART MIFace, from {start}, learning rate {rate:g}"] = {
                "ddcs_best": values["ddcs_best"],
                "nearest_distance": float(nearest.mean()),
                "confidence": 1.0 - float(found.losses.mean()),
                "seconds": seconds,
            }
    return {"data": name, "seed": seed, "machine": machine(seed), "measures": measures}


def ours(result: AuditResult) -> dict[str, float]:
    """Return the measures of a finished audit."""
    stages = read_manifest(result.run)["stages"]
    return {
        "ddcs_best": result.metrics["ddcs_best"]["value"],
        "nearest_distance": float(result.samples["nearest_distance"].mean()),
        "seconds": sum(s["seconds"] for s in stages if s["name"].startswith(TIMED)),
    }


def miface(
    problem: AttackProblem, start: str, rate: float, *, each: int, iterations: int
) -> tuple[Reconstructions, float]:
    """Return ``each`` images of each class by ART's MIFace, and the seconds that it took."""
    try:
        from art.attacks.inference.model_inversion import MIFace
        from art.estimators.classification import PyTorchClassifier
    except ImportError:
        raise SystemExit(
            "peers.py needs ART: uv run --with adversarial-robustness-toolbox python benchmarks/peers.py"
        ) from None

    class Probabilities(nn.Module):
        """The target as ART takes it: images in [0, 1] to probabilities."""

        def __init__(self) -> None:
            super().__init__()
            self.network = problem.target.module

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return problem.target(images).softmax(1)

    shape = problem.target.image_shape
    classifier = PyTorchClassifier(
        Probabilities().eval(), loss=nn.CrossEntropyLoss(), input_shape=shape,
        nb_classes=problem.target.num_classes, clip_values=(0.0, 1.0), device_type="cpu",
    )  # fmt: skip
    labels = problem.labels.repeat_interleave(each)
    rng = generator(problem.seed, "peers", start)
    if start == "noise":
        first = torch.rand(len(labels), *shape, generator=rng)
    else:
        order = torch.randint(len(problem.public), (len(labels),), generator=rng)
        first = to_float(problem.public.images[order])
    # ART computes the gradients of all classes in a batch one after another: a class at a time is faster.
    attack = MIFace(
        classifier, max_iter=iterations, window_length=100, threshold=1.0, learning_rate=rate,
        batch_size=each, verbose=False,
    )  # fmt: skip
    begun = time.perf_counter()
    found = attack.infer(first.numpy(), labels.numpy())
    seconds = time.perf_counter() - begun
    images = torch.from_numpy(np.ascontiguousarray(found)).float()
    with torch.no_grad():
        confidence = problem.target(images).softmax(1).gather(1, labels[:, None]).squeeze(1)
    return Reconstructions(images, labels, images, 1.0 - confidence), seconds


def rows(name: str, found: list[Measures]) -> list[dict[str, Any]]:
    """Return means over seeds, with half of their 95 % intervals, and the seconds' range."""
    table = []
    for variant in found[0]:
        row: dict[str, Any] = {"attack": variant, "seeds": len(found)}
        for measure, form in (("ddcs_best", ".3g"), ("nearest_distance", ".3g")):
            values = [float(seed[variant][measure] or 0.0) for seed in found]
            row[measure] = plus_minus(*interval(values), form, ".2g")
        certain = [seed[variant].get("confidence") for seed in found]
        row["confidence"] = "" if None in certain else f"{statistics.mean(certain):.3g}"
        row["seconds"] = f"{statistics.mean(seed[variant]['seconds'] for seed in found):.0f}"
        table.append(row)
    return table


if __name__ == "__main__":
    main()
