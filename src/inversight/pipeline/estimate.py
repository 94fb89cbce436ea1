"""Estimate how long an audit takes and what it needs, from short trials of its own code."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import psutil
import torch

from inversight.adaptation import adapt
from inversight.attacks import Attack
from inversight.attacks.surrogates import Ensemble
from inversight.attacks.workload import Measurable, SurrogateWork, Workload, cut_to
from inversight.core.device import reduced_precision
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.embeddings import Embedding, StageEmbedding, named_embedding
from inversight.models.networks import SavedClassifier, build_classifier
from inversight.models.target import Target, target_of
from inversight.models.training import train_classifier
from inversight.priors import Prior, StylePrior, train_prior
from inversight.priors.pivotal_tuning import tune
from inversight.priors.pivots import project
from inversight.settings import (
    ARMS,
    AuditSettings,
    ClassifierArchitecture,
    Training,
    prior_training,
)


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


def duration(seconds: float) -> str:
    """Return seconds as text: '45 s', '12 min' or '3.5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def estimate(
    settings: AuditSettings,
    *,
    private: ImageSet,
    public: ImageSet,
    public_for_prior: ImageSet,
    shape: tuple[int, int, int],
    attacks: Mapping[str, Attack],
    target: Target | None,
    trains_target: bool,
    trains_evaluator: bool,
    trains_public: bool,
    own_prior: Prior | None,
    given_prior: StylePrior | None,
    device: torch.device,
    remedy: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> Estimate:
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
                seconds[name] = factor * _classifier_seconds(images, training, shape, device)
    stand_in = target or untrained_target(private, shape)
    stand_in = stand_in.to(device)
    style = None if given_prior is None else given_prior.to(device)
    seconds["prior"] = 0.0
    training_ = prior_training(settings)
    if training_ is not None:

        def train(steps: int) -> StylePrior:
            return train_prior(
                public_for_prior.images,
                training=replace(training_, steps=steps),
                rng=generator(0),
                device=device,
            )

        with remedy("prior"):
            style = train(2)
            seconds["prior"] = training_.steps * _step(train)
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
                timers[name] = _attack_timer(works[name], stand_in, prior, classes)
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


def _step(run: Callable[[int], object]) -> float:
    """Return the seconds of one step, from runs of 1 and of 4 steps, so that set-up cancels.

    A first run is not timed: libraries import parts of themselves at their first use.
    """
    run(1)
    times = []
    for steps in (1, 4):
        started = time.perf_counter()
        run(steps)
        times.append(time.perf_counter() - started)
    return max(1e-4, (times[1] - times[0]) / 3)


def _classifier_seconds(
    images: ImageSet, training: Training, shape: tuple[int, int, int], device: torch.device
) -> float:
    few = images.select(torch.arange(min(len(images), 4 * training.batch_size)))
    per_epoch = _step(
        lambda epochs: train_classifier(
            few,
            training=replace(training, epochs=epochs, validation=0.0),
            image_shape=shape,
            rng=generator(0),
            device=device,
        )
    )
    return per_epoch * len(images) / len(few) * training.epochs_for(len(images))


def untrained_target(
    private: ImageSet, shape: tuple[int, int, int], architecture: ClassifierArchitecture = "resnet"
) -> Target:
    """Return an untrained classifier of the images' classes, for images of ``shape`` (C, S, S)."""
    return target_of(_untrained(private.classes, shape, architecture), "untrained")


def _untrained(
    classes: tuple[str, ...],
    shape: tuple[int, int, int],
    architecture: ClassifierArchitecture = "resnet",
) -> SavedClassifier:
    return build_classifier(
        architecture, classes=classes, image_shape=shape, width=16, mean=[0.0] * shape[0],
        std=[1.0] * shape[0], rng=generator(0),
    )  # fmt: skip


def _adaptation_seconds(
    settings: AuditSettings,
    prior: StylePrior,
    target: Target,
    public: ImageSet,
    device: torch.device,
) -> float:
    metric: Embedding | None = None
    if ARMS[settings.arm].natural_gradient:
        metric = _metric(settings.guidance_embedding, public, prior.image_shape, device)

    def run(steps: int) -> None:
        adaptation = replace(settings.adaptation, steps=steps, pivots=0, pivots_tuning=0)
        adapt(
            prior, target, public.images, arm=settings.arm, adaptation=adaptation,
            training=prior.training, metric=metric, rng=generator(0),
        )  # fmt: skip

    seconds = settings.adaptation.steps * _step(run) if settings.adaptation.steps > 0 else 0.0
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
    seconds += images / len(few) * settings.adaptation.pivots_steps * _step(search)
    if settings.adaptation.pivots_tuning == 0:
        return seconds
    pivoted = replace(prior, pivots=prior.sample(len(few), rng=generator(0)))

    def tuning(steps: int) -> None:
        tune(
            pivoted, target, few, few, steps=steps, missed=0.0, batch_size=at_once, rng=generator(0)
        )

    return seconds + settings.adaptation.pivots_tuning * _step(tuning)


def _metric(
    name: str, public: ImageSet, shape: tuple[int, int, int], device: torch.device
) -> Embedding:
    """Return the metric of the natural gradient; an untrained one of the same size if it is trained."""
    if name == "public":
        network = _untrained(public.classes or ("0", "1"), shape)
        network.module.eval().requires_grad_(False).to(device)
        return StageEmbedding("public", network)
    return named_embedding(
        name, use="distance", role="--guidance-embedding", size=shape[1], public_network=None,
        evaluator=None, working_size=max(64, shape[1]),
    )  # fmt: skip


Timer = Callable[[Workload], float]
"""Workload -> seconds."""


def _attack_timer(work: Workload, target: Target, prior: Prior, classes: int) -> Timer:
    """Time the units of ``work``; return a function that gives the seconds of more or fewer of them."""
    forward = _image_seconds(work, target, prior, min(work.batch_size, work.queries(classes)))
    backward = trained = agents = 0.0
    on_surrogates: Timer | None = None
    if work.backward:
        at_once = min(work.batch_size, work.at_once * classes)
        backward = _image_seconds(work, target, prior, at_once, backward=True)
    if work.agents is not None:
        run = work.agents.run
        agents = _step(lambda steps: run(classes, steps))
    if work.surrogates is not None:
        trained, ensemble = _surrogates(work.surrogates, prior, target)
        on_surrogates = _attack_timer(work.surrogates.workload, ensemble, prior, classes)

    def seconds(work: Workload) -> float:
        total = forward * (work.shared_queries + classes * work.forward)
        total += backward * classes * work.backward
        if work.agents is not None:
            total += agents * work.agents.steps
        if work.surrogates is not None and on_surrogates is not None:
            epochs = work.surrogates.training.epochs_for(work.surrogates.images)
            total += trained * epochs * work.surrogates.images * work.surrogates.count
            total += on_surrogates(work.surrogates.workload)
        return total * work.queries(classes) / work.unlimited_queries(classes)

    return seconds


def _image_seconds(
    work: Workload, target: Target, prior: Prior, images: int, *, backward: bool = False
) -> float:
    """Return the seconds of one of ``images`` images: generated, classified and differentiated.

    The shorter of two runs: other work of the machine makes a run longer, never shorter.
    """
    times = []
    for _ in range(3):  # the first is not used, as in _step
        start = prior.sample(images, rng=generator(0)).detach()
        if not work.generates:
            start = torch.rand(images, *target.image_shape, device=start.device)
        started = time.perf_counter()
        with torch.set_grad_enabled(backward), reduced_precision(start.device, work.half):
            start.requires_grad_(backward)
            made = prior(start) if work.generates else start
            loss = work.loss(target, made) if backward and work.loss else target(made).sum()
            if backward:
                torch.autograd.grad(loss, start)
            loss.item()  # waits for the device
        times.append(time.perf_counter() - started)
    return min(times[1:]) / images


def _surrogates(work: SurrogateWork, prior: Prior, target: Target) -> tuple[float, Target]:
    """Return the seconds of training one surrogate on one image, and untrained surrogates."""
    names = tuple(map(str, range(4 * work.training.batch_size)))
    blank = torch.zeros(len(names), *prior.image_shape, dtype=torch.uint8)
    images = ImageSet(blank, torch.arange(len(names)) % 2, names, ("0", "1"), names)
    device = prior.sample(1, rng=generator(0)).device
    training = replace(work.training, epochs=1)
    epoch = _classifier_seconds(images, training, prior.image_shape, device)
    surrogate = untrained_target(images, prior.image_shape).to(device)
    ensemble = replace(surrogate, module=Ensemble([surrogate] * work.count))
    return epoch / len(images), ensemble


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
    x = torch.rand(2, *shape, device=device)
    with torch.no_grad():
        embedding(x)
        started = time.perf_counter()
        embedding(x)
    return (time.perf_counter() - started) / 2 * images


def _feature_width(settings: AuditSettings, shape: tuple[int, int, int]) -> int:
    """Return about how many values one image's features have."""
    if settings.embedding.startswith("lpips"):
        return 8_000_000
    return 20 * shape[1] ** 2 + 4096
