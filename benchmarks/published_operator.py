"""Does the published natural gradient help where the published code's other choices are granted to it?

uv run python benchmarks/published_operator.py                  compute what is missing
uv run python benchmarks/published_operator.py --seeds 0-1      a part of it
uv run python benchmarks/published_operator.py --table          print the table of existing results

Digits, with a prior trained for twice the steps of the preset quick. Each arm adapts it in 150 steps of 32
images. Each adapted prior is attacked by Plug & Play with one w for all layers and with a w for each layer. Of
the candidates the most confident are kept, or diverse ones (the second attack: diverse ones). Gains are over
vanilla with the same latents, augmentation and attack.

operator     the natural gradient as published: inverse in the top 20 eigenvectors, absolute weight
uniform      latents drawn uniformly in the adaptation, and normally in the attack
augmented    images are augmented with a fixed probability, and the target sees augmented images; without it
             the adaptive augmentation of these priors is near 0
one metric   eigenvectors at samples (uniform latents) of the prior before the adaptation, whatever image is
             in that place of the batch, as in the published code; otherwise those of the image itself
spread       entropy of the target's mean prediction for samples, over that before the adaptation; below 0.7
             the prior has lost classes

Larger weights of the operator are on seed 0 alone, and not in the table. Results are JSON files under
--evidence, one for each seed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from attack_problem import AttackProblem
from base_audits import base_settings
from common import holm, interval, machine, p_of_no_gain, plus_minus
from inversight.adaptation.collapse import LOW, class_entropy
from inversight.attacks import Reconstructions
from inversight.core.errors import StageError
from inversight.core.seeding import generator
from inversight.embeddings import PullbackMetric
from inversight.embeddings.base import Embedding
from inversight.embeddings.linearised import Map
from inversight.priors import StylePrior
from inversight.settings import Adaptation, resolve
from seed_by_seed import Measures, run
from selection import chosen
from study import LOWER_IS_BETTER, SMALL, audit_arm

PRIOR_STEPS = 2000
"""Twice those of the preset quick for digits."""
STEPS = 150
SETTINGS: dict[str, Any] = {"batch_size": 32, "guided_images": 8}
"""Settings of every adaptation. Natural gradients are those of a quarter of each batch, for time; they count
four times."""
WEIGHTS = (0.003, 0.01, 0.03, 0.1)
LARGER = (0.3, 1.0)
"""Weights of the operator on seed 0 alone."""
BEST = 0.01
"""The weight of the operator's variants. It keeps the classes on seed 5, on which it was chosen."""
AUGMENTED = 0.3
"""Probability of augmentation of the arms with augmented images."""
VANILLA = "vanilla"
ONE_METRIC = "one metric"
ATTACKS = ("confident", "diverse", "diverse, w per layer")
SHOWN = ("ddcs_best", "covered", "coverage", "recall", "frechet", "accuracy_top1")
CANDIDATES = 5
"""Candidates for each one that is kept."""
BUDGET = {"steps": 40, "crops": 15}
SMALL_BUDGET = {"pool": 300, "steps": 4, "crops": 3, "keep": 5}
"""Settings of the attack."""


@dataclass(frozen=True)
class Arm:
    """An arm of the adaptation with its settings; ``own``: those of the operator."""

    kind: str
    own: dict[str, Any] = field(default_factory=dict)
    uniform: bool = False
    augmented: bool = False
    one_metric: bool = False

    @property
    def base(self) -> str:
        """The arm that gains are over."""
        if self.kind == VANILLA:
            return VANILLA
        return VANILLA + ", uniform" * self.uniform + ", augmented" * self.augmented


def operator(weight: float, *granted: bool) -> Arm:
    """Return the published natural gradient, with what is ``granted`` to it as in :class:`Arm`."""
    own = {"preconditioner": "eigen", "scale": "absolute", "weight": weight}
    return Arm("natural-gradient", own, *granted)


ARMS = {
    VANILLA: Arm("vanilla"),
    "entropy": Arm("entropy"),
    "damped": Arm("natural-gradient"),
    **{f"operator {weight:g}": operator(weight) for weight in WEIGHTS},
    "vanilla, uniform": Arm("vanilla", {}, True),
    f"operator {BEST:g}, uniform": operator(BEST, True),
    "vanilla, uniform, augmented": Arm("vanilla", {}, True, True),
    f"operator {BEST:g}, uniform, augmented": operator(BEST, True, True),
    f"operator {BEST:g}, uniform, augmented, {ONE_METRIC}": operator(BEST, True, True, True),
}
SMALL_ARMS = {name: ARMS[name] for name in (VANILLA, "vanilla, uniform, augmented", list(ARMS)[-1])}


@dataclass(frozen=True)
class PerLayer:
    """A prior whose latents are a w for each layer, the same at the start."""

    prior: StylePrior

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.prior.image_shape

    def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
        w = self.prior.sample(n, rng=rng)
        return w[:, None].repeat(1, self.prior.average.num_ws, 1)

    def __call__(self, latents: Tensor) -> Tensor:
        return self.prior(latents)


@dataclass(frozen=True)
class DenseMetric:
    """An embedding whose metric is computed as matrices, which is faster for images of 64 pixels.

    With ``at`` (N, C, H, W), it is the metric there whatever the images, for at most N images.
    """

    embedding: Embedding
    at: Tensor | None = None
    name: str = "dense"

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.embedding(images)

    def gram(self, images: Tensor, dtype: torch.dtype) -> Map:
        place = images if self.at is None else self.at[: len(images)]
        n, pixels = len(place), place[0].numel()
        units = torch.eye(pixels).view(-1, *place.shape[1:]).repeat(n, 1, 1, 1)
        metric = PullbackMetric(self.embedding, place.repeat_interleave(pixels, 0), dtype=dtype)
        matrices = metric.product(units).view(n, pixels, pixels) / 2.0
        return lambda v: (matrices @ v.flatten(1)[:, :, None]).view_as(v)


def main() -> None:
    run(
        "the published natural gradient", __doc__ or "", datasets=("digits",), seeds="0-4",
        evidence="docs/published-operator", work="benchmarks/out/published-operator",
        measure=measured, rows=rows, figures=corrected,
    )  # fmt: skip


def problem_of(name: str, seed: int, options: argparse.Namespace) -> AttackProblem:
    """Return the problem with the better prior; train what is missing."""
    places = {"data": options.data, "work": options.work}
    if options.small:
        return AttackProblem.load(name, seed, **places, small=True)
    settings = base_settings(name, seed, **places)
    prior = {**resolve({"seed": seed}).prior, "steps": PRIOR_STEPS}
    attack = {**settings.attack[0], **SMALL["attack"][0]}  # its result is not used
    settings = replace(settings, prior=prior, adaptation=Adaptation(steps=0), attack=(attack,))
    folder = options.work / f"{name}-{seed}" / "base"
    audit_arm(settings, folder, folder)
    return AttackProblem.from_run(name, seed, settings, folder)


def measured(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the measures of each arm and attack for one data set and seed."""
    problem = problem_of(name, seed, options)
    found = measures_of(problem, SMALL_ARMS if options.small else ARMS, small=options.small)
    facts = {"data": name, "seed": seed, "machine": machine(seed), "measures": found}
    if seed == 0 and not options.small:
        facts["larger"] = {}
        for weight in LARGER:
            with suppress(StageError):  # the training diverged
                facts["larger"] |= measures_of(problem, {f"operator {weight:g}": operator(weight)})
    return facts


def measures_of(
    problem: AttackProblem, arms: Mapping[str, Arm], *, small: bool = False
) -> Measures:
    """Return the measures of some arms with each attack."""
    seed, average = problem.seed, problem.trained.average
    size = (SETTINGS["guided_images"], average.architecture.z_dim)
    with torch.no_grad():
        latents = average.mapping(torch.rand(size, generator=generator(seed, ONE_METRIC)))
        samples = problem.trained(latents)
    metrics = (DenseMetric(problem.metric), DenseMetric(problem.metric, samples))
    training = replace(problem.trained.training, ada_images=1e12)
    augmented = replace(problem.trained, augmentation=AUGMENTED, training=training)

    def spread(prior: StylePrior) -> float:
        return class_entropy(problem.target, prior, rng=generator(seed, "spread"))

    before, measures = spread(problem.trained), Measures()
    for name, arm in arms.items():
        started = time.perf_counter()
        prior = problem.prior(
            arm.kind, 4 if small else STEPS, variant=name,
            start=augmented if arm.augmented else None, metric=metrics[arm.one_metric],
            uniform_latents=arm.uniform, augmented_guidance=arm.augmented, **SETTINGS, **arm.own,
        )  # fmt: skip
        row = {"spread": spread(prior) / before, "augmentation": prior.augmentation}
        for attack, kept in attacked(problem, prior, small=small):
            values, evaluation = problem.scored(kept)
            values["recall"] = evaluation.metrics["recall"]["value"]
            measures[f"{name}: {attack}"] = row | {m: values.get(m) for m in SHOWN}
        print(f"seed {seed}, {name}: {time.perf_counter() - started:.0f} s", flush=True)
    return measures


def attacked(
    problem: AttackProblem, prior: StylePrior, *, small: bool
) -> list[tuple[str, Reconstructions]]:
    """Return the reconstructions that each of ATTACKS keeps."""
    budget = SMALL_BUDGET if small else BUDGET
    keep = problem.attack("plug-and-play", **budget).keep
    count = CANDIDATES * keep
    wanted = {**budget, "candidates": count, "keep": count}
    attack = problem.attack("plug-and-play", truncation=1.0, halvings=0, half=False, **wanted)
    single, _ = problem.run(attack, prior)
    layered, _ = problem.run(attack, PerLayer(prior))
    kept = (
        chosen(single, None, keep),
        chosen(single, single.images.flatten(1), keep),
        chosen(layered, layered.images.flatten(1), keep),
    )
    return list(zip(ATTACKS, kept, strict=True))


def arms_of(found: list[Measures]) -> list[str]:
    """Return the arms that there are results of."""
    return [arm for arm in ARMS if f"{arm}: {ATTACKS[0]}" in found[0]]


def gains_of(found: list[Measures], arm: str, attack: str, measure: str) -> list[float]:
    """Return the paired gains of the seeds, positive where better."""
    sign, base = -1.0 if measure in LOWER_IS_BETTER else 1.0, ARMS[arm].base
    return [
        round(sign * (seed[f"{arm}: {attack}"][measure] - seed[f"{base}: {attack}"][measure]), 9)
        for seed in found
    ]


def p_values(found: list[Measures], measures: tuple[str, ...]) -> dict[tuple[str, str, str], float]:
    """Return the p value of each comparison of these measures; none with fewer than three seeds."""
    if len(found) < 3:
        return {}
    return {
        (arm, attack, measure): p
        for arm in arms_of(found)
        for attack in ATTACKS
        for measure in measures
        if arm != VANILLA and (p := p_of_no_gain(gains_of(found, arm, attack, measure))) is not None
    }


def corrected(found: list[Measures]) -> dict[str, Any]:
    """Return how many gains exclude 0, and those that do after Holm's correction, of all and of DDCS."""
    figures: dict[str, Any] = {}
    for name, measures in (("all", SHOWN), ("ddcs", SHOWN[:1])):
        p = p_values(found, measures)
        held = [", ".join(key) for key, value in holm(p).items() if value <= 0.05]
        figures |= {
            f"{name}_comparisons": len(p),
            f"{name}_intervals_without_0": sum(value <= 0.05 for value in p.values()),
            f"{name}_after_holm": "; ".join(held) or "none",
        }
    return figures


def rows(name: str, found: list[Measures]) -> list[dict[str, Any]]:
    """Return means over seeds, and in brackets gains ± half of their 95 % intervals."""
    table = []
    for attack in ATTACKS:
        for arm in arms_of(found):
            values = [seed[f"{arm}: {attack}"] for seed in found]

            def mean(measure: str, values: list[Any] = values) -> str:
                return f"{interval([one[measure] for one in values])[0]:.3g}"

            row = {"attack": attack, "arm": arm, "seeds": len(found)}
            row["spread"] = mean("spread")
            lost = sum(one["spread"] < LOW for one in values)
            row["spread"] += f" ({lost} collapsed)" if lost else ""
            for measure in SHOWN:
                row[measure] = mean(measure)
                if arm != VANILLA:
                    gain, half = interval(gains_of(found, arm, attack, measure))
                    row[measure] += f" ({plus_minus(gain, half, '+.2g', '.2g')})"
            table.append(row)
    return table


if __name__ == "__main__":
    main()
