"""Time the parts of an audit in short trials: a training step, an image of an attack, an embedding."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from inversight.attacks.surrogates import Ensemble
from inversight.attacks.workload import SurrogateWork, Workload
from inversight.core.device import reduced_precision
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.models.networks import SavedClassifier, build_classifier
from inversight.models.target import Target, target_of
from inversight.models.training import train_classifier
from inversight.priors import Prior
from inversight.settings import ClassifierArchitecture, Training


def seconds_per_step(run: Callable[[int], object]) -> float:
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


def training_seconds(
    images: ImageSet, training: Training, shape: tuple[int, int, int], device: torch.device
) -> float:
    """Return the seconds of training a classifier of ``shape`` (C, S, S), without early stopping."""
    few = images.select(torch.arange(min(len(images), 4 * training.batch_size)))
    per_epoch = seconds_per_step(
        lambda epochs: train_classifier(
            few, training=replace(training, epochs=epochs, validation=0.0), image_shape=shape,
            rng=generator(0), device=device,
        )
    )  # fmt: skip
    return per_epoch * len(images) / len(few) * training.epochs_for(len(images))


def untrained_target(
    private: ImageSet, shape: tuple[int, int, int], architecture: ClassifierArchitecture = "resnet"
) -> Target:
    """Return an untrained classifier of the images' classes, for images of ``shape`` (C, S, S)."""
    return target_of(untrained_classifier(private.classes, shape, architecture), "untrained")


def untrained_classifier(
    classes: tuple[str, ...],
    shape: tuple[int, int, int],
    architecture: ClassifierArchitecture = "resnet",
) -> SavedClassifier:
    """Return an untrained classifier of images of ``shape`` (C, S, S)."""
    return build_classifier(
        architecture, classes=classes, image_shape=shape, width=16, mean=[0.0] * shape[0],
        std=[1.0] * shape[0], rng=generator(0),
    )  # fmt: skip


Timer = Callable[[Workload], float]
"""Workload -> seconds."""


def attack_timer(work: Workload, target: Target, prior: Prior, classes: int) -> Timer:
    """Time the units of ``work``; return a function that gives the seconds of more or fewer of them."""
    forward = _image_seconds(work, target, prior, min(work.batch_size, work.queries(classes)))
    backward = trained = agents = 0.0
    on_surrogates: Timer | None = None
    if work.backward:
        at_once = min(work.batch_size, work.at_once * classes)
        backward = _image_seconds(work, target, prior, at_once, backward=True)
    if work.agents is not None:
        run = work.agents.run
        agents = seconds_per_step(lambda steps: run(classes, steps))
    if work.surrogates is not None:
        trained, ensemble = _surrogates(work.surrogates, prior)
        on_surrogates = attack_timer(work.surrogates.workload, ensemble, prior, classes)
    anew = [attack_timer(one, target, prior, 1) for one in work.repeated]

    def seconds(work: Workload) -> float:
        total = forward * (work.shared_queries + classes * work.forward)
        total += backward * classes * work.backward
        if work.agents is not None:
            total += agents * work.agents.steps
        if work.surrogates is not None and on_surrogates is not None:
            epochs = work.surrogates.training.epochs_for(work.surrogates.images)
            total += trained * epochs * work.surrogates.images * work.surrogates.count
            total += on_surrogates(work.surrogates.workload)
        for timer, one in zip(anew, work.repeated, strict=True):
            total += classes * timer(one)
        return total * work.queries(classes) / work.unlimited_queries(classes)

    return seconds


def _image_seconds(
    work: Workload, target: Target, prior: Prior, images: int, *, backward: bool = False
) -> float:
    """Return the seconds of one of ``images`` images: generated, classified and differentiated.

    The shorter of two runs: other work of the machine makes a run longer, never shorter.
    """
    times = []
    for _ in range(3):  # the first is not used, as in seconds_per_step
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


def _surrogates(work: SurrogateWork, prior: Prior) -> tuple[float, Target]:
    """Return the seconds of training one surrogate on one image, and untrained surrogates."""
    names = tuple(map(str, range(4 * work.training.batch_size)))
    blank = torch.zeros(len(names), *prior.image_shape, dtype=torch.uint8)
    images = ImageSet(blank, torch.arange(len(names)) % 2, names, ("0", "1"), names)
    device = prior.sample(1, rng=generator(0)).device
    training = replace(work.training, epochs=1)
    epoch = training_seconds(images, training, prior.image_shape, device)
    surrogate = untrained_target(images, prior.image_shape).to(device)
    ensemble = replace(surrogate, module=Ensemble([surrogate] * work.count))
    return epoch / len(images), ensemble
