"""Estimate how long an audit takes and what it needs, from short trials of its own code."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import psutil
import torch

from inversight.adaptation import adapt
from inversight.attacks import Attack
from inversight.attacks.workload import Measurable, Workload, cut_to
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.embeddings import Embedding, StageEmbedding, named_embedding
from inversight.models.target import Target
from inversight.pipeline.timing import (
    Timer,
    attack_timer,
    embedding_seconds,
    seconds_per_step,
    training_seconds,
    untrained_classifier,
    untrained_target,
)
from inversight.priors import Prior, StylePrior, train_prior
from inversight.priors.pivotal_tuning import tune
from inversight.priors.pivots import project
from inversight.report.formatting import duration
from inversight.settings import ARMS, AuditSettings, prior_training


@dataclass(frozen=True)
class Estimate:
    """Seconds of each stage, None if it is the user's own part and cannot be estimated; bytes."""

    seconds: dict[str, float | None]
    memory_bytes: int
    disk_bytes: int

    @property
    def total(self) -> float:
        """Seconds of all stages that can be estimated."""
        return sum(s for s in self.seconds.values() if s is not None)

    def __str__(self) -> str:
        parts = [
            f"{name} {'unknown' if s is None else duration(s)}" for name, s in self.seconds.items()
        ]
        return (
            f"about {duration(self.total)} ({', '.join(parts)}), "
            f"{self.memory_bytes / 2**30:.1f} GiB of memory, {self.disk_bytes / 1e6:.0f} MB on disk"
        )


def estimate(
    settings: AuditSettings, *, private: ImageSet, public: ImageSet, public_for_prior: ImageSet,
    shape: tuple[int, int, int], attacks: Mapping[str, Attack], target: Target | None,
    trains_target: bool, trains_evaluator: bool, trains_public: bool, own_prior: Prior | None,
    given_prior: StylePrior | None, device: torch.device,
    remedy: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> Estimate:  # fmt: skip
    """Time a few steps of every stage on networks of the right shape, and multiply.

    ``public`` has the size of networks trained here, ``public_for_prior`` that of the prior. Each stage
    is timed in the context ``remedy(its name)``. Early stopping makes the training of classifiers
    shorter than estimated. Scoring and the report are counted as one pass of the feature networks.
    """
    seconds: dict[str, float | None] = {}
    classes = max(1, len(private.labels.unique()))
    for name, trained, images, training in (
        ("target", trains_target, private, settings.target_training),
        ("evaluator", trains_evaluator, private, settings.evaluator_training),
        ("public-network", trains_public, public, settings.public_training),
    ):
        if trained:
            factor = 4 if name == "public-network" and len(public.classes) < 2 else 1
            with remedy(name):
                seconds[name] = factor * training_seconds(images, training, shape, device)
    stand_in = target or untrained_target(private, shape)
    stand_in = stand_in.to(device)
    style = None if given_prior is None else given_prior.to(device)
    seconds["prior"] = 0.0
    training_ = prior_training(settings)
    if training_ is not None:

        def train(steps: int) -> StylePrior:
            return train_prior(
                public_for_prior.images, training=replace(training_, steps=steps),
                rng=generator(0), device=device,
            )  # fmt: skip

        with remedy("prior"):
            style = train(2)
            seconds["prior"] = training_.steps * seconds_per_step(train)
    if style is not None and not settings.adaptation.keeps_prior:
        with remedy("adaptation"):
            seconds["adaptation"] = _adaptation_seconds(
                settings, style, stand_in, public_for_prior, device
            )
    prior: Prior | None = style or own_prior
    works: dict[str, Workload] = {}
    timers: dict[str, Timer] = {}
    for name, attack in attacks.items():
        seconds[name] = None
        if isinstance(attack, Measurable) and prior is not None:
            works[name] = attack.workload(prior)
            with remedy(name):
                timers[name] = attack_timer(works[name], stand_in, prior, classes)
                seconds[name] = timers[name](works[name])
    kept = classes * sum(work.kept for work in works.values())
    if settings.budget:
        seconds["budget"] = None
        if prior is not None and len(works) == len(attacks):
            cuts = _cut_workloads(settings.budget, attacks, prior, classes)
            attacked = sum(timers[name](work) for name, work in cuts)
            # The unchanged attacks are scored again too.
            scored = len(private) * (len(cuts) + len(attacks)) + kept
            scored += classes * sum(work.kept for _, work in cuts)
            with remedy("scores"):
                seconds["budget"] = attacked + _embedding_seconds(settings, shape, scored, device)
    embedded = len(private) * 2 + kept
    if settings.private is not None and settings.holdout is None:
        embedded += len(private) + kept  # the control
    with remedy("scores"):
        seconds["scores"] = _embedding_seconds(settings, shape, embedded, device)
    with remedy("signals"):
        seconds["signals"] = _embedding_seconds(settings, shape, 2 * len(private), device)
    weights = 0
    if isinstance(prior, StylePrior):
        weights = 4 * sum(p.numel() for m in (prior.raw, prior.critic) for p in m.parameters())
    pixels = math.prod(shape)
    prior_pixels = pixels if prior is None else math.prod(prior.image_shape)
    images_bytes = private.images.numel() + public.images.numel()
    if public_for_prior is not public:
        images_bytes += public_for_prior.images.numel()
    floats = 4 * pixels * max(len(private), len(public))
    blocks = min(settings.memory, 4 * embedded * _feature_width(settings, shape))
    resident = psutil.Process().memory_info().rss
    return Estimate(
        seconds=seconds,
        memory_bytes=int(resident + images_bytes + floats + blocks + 8 * weights),
        disk_bytes=int(8 * weights + 2 * kept * prior_pixels + 60_000_000),
    )


def _adaptation_seconds(
    settings: AuditSettings, prior: StylePrior, target: Target, public: ImageSet,
    device: torch.device,
) -> float:  # fmt: skip
    """Return the seconds of the adaptation: the game, the search of pivots and the tuning to them."""
    metric: Embedding | None = None
    if ARMS[settings.arm].natural_gradient:
        metric = _metric(settings.guidance_embedding, public, prior.image_shape, device)

    def run(steps: int) -> None:
        adaptation = replace(settings.adaptation, steps=steps, pivots=0, pivots_tuning=0)
        adapt(
            prior, target, public.images, arm=settings.arm, adaptation=adaptation,
            training=prior.training, metric=metric, rng=generator(0),
        )  # fmt: skip

    seconds = (
        settings.adaptation.steps * seconds_per_step(run) if settings.adaptation.steps > 0 else 0.0
    )
    if settings.adaptation.pivots == 0:
        return seconds
    training = settings.adaptation.training_settings(prior.training)
    at_once = training.images_at_once or training.batch_size
    few = public.images[:at_once]

    def search(steps: int) -> None:
        # With few samples to start from: classifying all takes little compared with the search.
        project(
            prior, target, few, few, steps=steps, samples=max(2, len(few)),
            batch_size=at_once, rng=generator(0),
        )  # fmt: skip

    images = settings.adaptation.pivots * target.num_classes
    seconds += images / len(few) * settings.adaptation.pivots_steps * seconds_per_step(search)
    if settings.adaptation.pivots_tuning == 0:
        return seconds
    pivoted = replace(prior, pivots=prior.sample(len(few), rng=generator(0)))

    def tuning(steps: int) -> None:
        tune(
            pivoted, target, few, few, steps=steps, missed=0.0, batch_size=at_once, rng=generator(0)
        )

    return seconds + settings.adaptation.pivots_tuning * seconds_per_step(tuning)


def _metric(
    name: str, public: ImageSet, shape: tuple[int, int, int], device: torch.device
) -> Embedding:
    """Return the metric of the natural gradient; an untrained one of the same size if it is trained."""
    if name == "public":
        network = untrained_classifier(public.classes or ("0", "1"), shape)
        network.module.eval().requires_grad_(False).to(device)
        return StageEmbedding("public", network)
    return named_embedding(
        name, use="distance", role="--guidance-embedding", size=shape[1], public_network=None,
        evaluator=None, working_size=max(64, shape[1]),
    )  # fmt: skip


def _cut_workloads(
    budget: Sequence[int], attacks: Mapping[str, Attack], prior: Prior, classes: int
) -> list[tuple[str, Workload]]:
    """Return the workload of each attack cut to each number of queries, if it can be cut to it."""
    found: list[tuple[str, Workload]] = []
    for name, attack in attacks.items():
        if not isinstance(attack, Measurable):
            continue
        used = attack.workload(prior).queries(classes)
        for queries in budget:
            less = cut_to(attack, queries, prior=prior, classes=classes, used=used)
            if isinstance(less, Measurable):
                found.append((name, less.workload(prior)))
    return found


def _embedding_seconds(
    settings: AuditSettings, shape: tuple[int, int, int], images: int, device: torch.device
) -> float:
    """Return the seconds of one forward pass of the distance's network over all images."""
    name = settings.embedding
    if name in ("public", "pixel", "evaluator"):
        return 0.001 * images * (shape[1] / 32) ** 2 + 1.0
    embedding = named_embedding(
        name, use="distance", role="--embedding", size=shape[1], public_network=None, evaluator=None
    )
    return images * embedding_seconds(embedding, shape, device)


def _feature_width(settings: AuditSettings, shape: tuple[int, int, int]) -> int:
    """Return about how many values one image's features have."""
    if settings.embedding.startswith("lpips"):
        return 8_000_000
    return 20 * shape[1] ** 2 + 4096
