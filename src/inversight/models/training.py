"""Trains a target, an evaluator or a public feature network: one loop for all three.

A :class:`Variation` describes differences from plain training; most defences are one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.core.errors import StageError
from inversight.core.imaging import normalise
from inversight.core.progress import Figures, Progress, silent
from inversight.core.seeding import draw_seed, generator
from inversight.data import ImageSet, split
from inversight.models.networks import (
    PLAIN_NETWORK,
    Classifier,
    NetworkOptions,
    SavedClassifier,
    build_classifier,
)
from inversight.models.target import accuracy_on, target_of
from inversight.settings import Training


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained classifier and how it did: accuracies in [0, 1], loss a mean over images."""

    classifier: SavedClassifier
    epochs: int
    train_accuracy: float
    validation_accuracy: float | None


@dataclass(frozen=True)
class Batch:
    """The input of a loss.

    inputs: (B, C, S, S), augmented and normalised. labels: (B,) int64, or (B, K) if the variation has
    soft labels. done: completed fraction of the training, in [0, 1). rng: for what the loss draws.
    """

    inputs: Tensor
    labels: Tensor
    done: float
    rng: torch.Generator


Change = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""Maps images (B, C, S, S) in [0, 1] and their rows (B,) in the image set to images of that shape."""
Loss = Callable[[Classifier, Batch], Tensor]
"""Maps network and batch to the scalar that a step minimises."""
HeldLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits (N, K) and labels of the validation split, (N,) or soft (N, K), to the scalar that early
stopping minimises."""


@dataclass(frozen=True)
class Stepping:
    """Batches and optimiser: each image once an epoch in random order, and plain gradients."""

    def batches(self, images: int, batch_size: int, rng: torch.Generator) -> Sequence[Tensor]:
        """Return the positions in [0, images), int64, of each step of one epoch."""
        parts = torch.randperm(images, generator=rng).split(batch_size)
        # Batch normalisation needs two images.
        return [part for part in parts if len(part) > 1 or images == 1]

    def prepare(
        self, module: Classifier, optimiser: torch.optim.Optimizer, seed: int
    ) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
        """Return the optimiser to use, and a function that removes any hooks from the module."""
        return optimiser, lambda: None


@dataclass(frozen=True)
class Variation:
    """Differences from plain training; the default is plain training.

    weights: (N,) >= 0, factor of each image's term in the recipe's loss, in training and validation;
    the sum is still divided by the number of images. change: applied to images before the recipe's
    augmentation. loss: replaces the recipe's; weights are not applied to it. held_loss: replaces the
    recipe's in early stopping. soft: (N, K), labels of each image for these two losses. settles:
    initial fraction of the training from which no epoch is kept, for losses that change over time.
    network: options of the network. normalisation: mean and standard deviation of each channel,
    instead of the training images'. start: initial values by name, instead of random ones. frozen:
    names of modules that are not trained; their running statistics stay fixed too. stepping: batches
    and optimiser.
    """

    weights: Tensor | None = None
    change: Change | None = None
    loss: Loss | None = None
    held_loss: HeldLoss | None = None
    soft: Tensor | None = None
    settles: float = 0.0
    network: NetworkOptions = PLAIN_NETWORK
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None
    start: Mapping[str, Tensor] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    stepping: Stepping = field(default_factory=Stepping)


PLAIN = Variation()


def focal_loss(
    logits: Tensor, labels: Tensor, gamma: float, weights: Tensor | None = None
) -> Tensor:
    """Return the mean of -(1 - p_y)^gamma log p_y (Lin et al. 2017, eq. 4 without alpha).

    gamma 0 is cross-entropy. With ``weights`` (N,) each term is multiplied by its own; the mean stays
    over N.
    """
    log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
    each = (1.0 - log_p.exp()).pow(gamma) * log_p
    return -(each if weights is None else each * weights).mean()


def augment(images: Tensor, training: Training, rng: torch.Generator) -> Tensor:
    """Mirror, shift, scale and rotate each image (N, C, H, W) at random, in one resampling."""
    return augment_by(images, augmentation_draws(len(images), rng), training)


def augmentation_draws(images: int, rng: torch.Generator) -> Tensor:
    """Return (N, 5) in [-1, 1): what :func:`augment_by` needs to know of chance for each image."""
    return torch.rand(images, 5, generator=rng) * 2.0 - 1.0


def augment_by(images: Tensor, draws: Tensor, training: Training) -> Tensor:
    """Augment images (N, C, H, W) by ``draws`` (N, 5), in one resampling."""
    n = len(images)
    angle = draws[:, 0] * math.radians(training.rotation)
    scale = 1.0 + draws[:, 1] * training.shift
    mirror = torch.where(draws[:, 2] < 0, -1.0, 1.0) if training.flip else torch.ones(n)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    # affine_grid's unit is half an image, hence the factor of two.
    x, y = 2.0 * training.shift * draws[:, 3:5].T
    theta = torch.stack([mirror * cos, -sin, x, mirror * sin, cos, y], 1).view(n, 2, 3)
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train_classifier(
    images: ImageSet, *, training: Training, image_shape: tuple[int, int, int], rng: torch.Generator,
    progress: Progress = silent, device: torch.device | str = "cpu", variation: Variation = PLAIN,
) -> TrainedClassifier:  # fmt: skip
    """Train a small classifier on ``images`` at ``image_shape`` (C, S, S) and keep the best epoch.

    The best epoch has the lowest validation loss; it is the last one if no class has images to spare
    for validation. Every ``variation`` is trained by the recipe and budget of ``training``, and its
    random draws do not change the others.

    Raises:
        StageError: the loss stopped being a number.
    """
    rest, held_out = images, images.select(torch.arange(0))
    if training.validation:
        rest, held_out = split(images, training.validation, rng=rng)
    row_of = {name: row for row, name in enumerate(images.ids)}
    rows, held = (
        torch.tensor([row_of[name] for name in part.ids], dtype=torch.int64)
        for part in (rest, held_out)
    )
    channels, size, _ = image_shape
    pixels = images.floats(size=size, channels=channels).to(device)
    if variation.normalisation is None:
        mean, std = channel_statistics(pixels[rows].cpu())
    else:
        mean, std = (torch.tensor(values) for values in variation.normalisation)
    built = build_classifier(
        training.architecture, classes=images.classes, image_shape=image_shape, width=training.width,
        mean=mean.tolist(), std=std.tolist(), rng=rng, options=variation.network,
    )  # fmt: skip
    module = built.module.to(device)
    module.load_state_dict({**module.state_dict(), **variation.start})
    epochs = _run_epochs(
        module, pixels, images.labels.to(device), rows, held, training=training,
        normalisation=(built.mean, built.std), seed=draw_seed(rng), progress=progress,
        variation=variation,
    )  # fmt: skip
    classifier = replace(built, module=module.cpu())
    target = target_of(classifier, "trained")
    validation_accuracy = accuracy_on(target, held_out) if held_out else None
    return TrainedClassifier(classifier, epochs, accuracy_on(target, rest), validation_accuracy)


def train_module(
    module: nn.Module, images: ImageSet, *, training: Training, image_shape: tuple[int, int, int],
    normalisation: tuple[Sequence[float], Sequence[float]], rng: torch.Generator,
    progress: Progress = silent, device: torch.device | str = "cpu",
) -> None:  # fmt: skip
    """Train any network in place, on all of ``images`` at ``image_shape`` (C, H, W), to the last epoch.

    The network maps images (N, C, S, S), normalised by mean and standard deviation, to logits (N, K).
    ``training`` says all but the network, which is left on ``device`` in training mode.

    Raises:
        StageError: the loss stopped being a number.
    """
    channels, height, width = image_shape
    pixels = images.floats(size=(height, width), channels=channels).to(device)
    network = cast(Classifier, module.to(device))  # only some variations need more than a call
    _run_epochs(
        network, pixels, images.labels.to(device), torch.arange(len(images)), torch.arange(0),
        training=training, normalisation=normalisation, seed=draw_seed(rng), progress=progress,
        variation=PLAIN,
    )  # fmt: skip


def _run_epochs(
    module: Classifier, pixels: Tensor, labels: Tensor, rows: Tensor, held: Tensor, *,
    training: Training, normalisation: tuple[Sequence[float], Sequence[float]], seed: int,
    progress: Progress, variation: Variation,
) -> int:  # fmt: skip
    """Train on the images at ``rows``, keep the epoch that is best on those at ``held``; return their number.

    pixels: (N, C, S, S) in [0, 1]. labels: (N,). held may be empty: the last epoch is kept.
    """
    device, (mean, std) = pixels.device, normalisation
    targets = labels if variation.soft is None else variation.soft.to(device)
    weights = None if variation.weights is None else variation.weights.to(device)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not _is_inside(name, variation.frozen))
    epochs = training.epochs_for(len(rows))
    optimiser, schedule = build_optimiser(
        module.parameters(), training, epochs, math.ceil(len(rows) / training.batch_size)
    )
    optimiser, release = variation.stepping.prepare(module, optimiser, seed)

    def loss_of(logits: Tensor, rows: Tensor) -> Tensor:
        """Return the recipe's loss of the logits of the images at ``rows``."""
        chosen = None if weights is None else weights[rows]
        return recipe_loss(logits, labels[rows], training, chosen)

    best_loss, best_epoch, epoch = math.inf, 0, 0
    best_state = copy.deepcopy(module.state_dict())
    for epoch in range(1, epochs + 1):
        step_rng = generator(seed, epoch)
        # Separate generators, so that a variation does not change the draws of plain training.
        change_rng, loss_rng = generator(seed, epoch, "change"), generator(seed, epoch, "loss")
        module.train()
        for name, child in module.named_modules():
            if _is_inside(name, variation.frozen):
                child.eval()
        batches = variation.stepping.batches(len(rows), training.batch_size, step_rng)
        for step, index in enumerate(batches):
            batch = rows[index]
            x = pixels[batch]
            if variation.change is not None:
                x = variation.change(x, batch, change_rng)
            inputs = normalise(augment(x, training, step_rng), mean, std)
            if variation.loss is None:
                loss = loss_of(module(inputs), batch)
            else:
                done = (epoch - 1 + step / len(batches)) / epochs
                loss = variation.loss(module, Batch(inputs, targets[batch], done, loss_rng))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            if not math.isfinite(last := float(loss.detach())):
                raise StageError(
                    f"training diverged in epoch {epoch}: the loss is {last}; "
                    "lower training.learning_rate"
                )
        note = Figures(f"loss {last:.3f}", loss=last)
        if len(held):
            module.eval()
            with torch.inference_mode():
                logits = module(normalise(pixels[held], mean, std))
                held_loss = float(
                    loss_of(logits, held)
                    if variation.held_loss is None
                    else variation.held_loss(logits, targets[held])
                )
            note = Figures(f"{note}, validation {held_loss:.3f}", loss=last, validation=held_loss)
            settled = epoch == epochs or epoch - 1 >= variation.settles * epochs
            if settled and held_loss < best_loss:
                best_loss, best_epoch = held_loss, epoch
                best_state = copy.deepcopy(module.state_dict())
            elif settled and epoch - best_epoch >= training.patience:
                break
        progress(epoch, epochs, note)
    release()
    if len(held):
        module.load_state_dict(best_state)
    progress(epochs, epochs, "stopped early" if epoch < epochs else "")
    return epoch


def rotation_task(images: ImageSet) -> ImageSet:
    """Return every image turned by 0, 90, 180 and 270 degrees, labelled by the angle.

    This is the pretext task for public images without classes (Gidaris et al. 2018): a network that
    predicts the angle has learnt features of the images.
    """
    return ImageSet(
        images=torch.cat([torch.rot90(images.images, k, dims=(2, 3)) for k in range(4)]),
        labels=torch.arange(4).repeat_interleave(len(images)),
        ids=tuple(f"{k * 90}/{name}" for k in range(4) for name in images.ids),
        classes=("0", "90", "180", "270"),
        hashes=tuple(f"{k}{h}" for k in range(4) for h in images.hashes),
    )


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel of images (N, C, H, W), each (C,)."""
    return images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3)).clamp_min(1e-3)


def recipe_loss(
    logits: Tensor, labels: Tensor, training: Training, weights: Tensor | None = None
) -> Tensor:
    """Return the recipe's loss, a mean over images, each multiplied by its weight (N,) if given."""
    if training.loss == "focal":
        return focal_loss(logits, labels, training.gamma, weights)
    if weights is None:
        return F.cross_entropy(logits, labels)
    return (F.cross_entropy(logits, labels, reduction="none") * weights).mean()


def _is_inside(name: str, modules: Sequence[str]) -> bool:
    """Return whether ``name`` is one of ``modules`` or inside one."""
    return any(name == module or name.startswith(module + ".") for module in modules)


def build_optimiser(
    parameters: Iterable[nn.Parameter], training: Training, epochs: int, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return the recipe's optimiser, and its schedule, which is stepped after every step."""
    given = list(parameters)
    shared: dict[str, Any] = dict(lr=training.learning_rate, weight_decay=training.weight_decay)
    optimiser: torch.optim.Optimizer = torch.optim.AdamW(given, **shared)
    if training.optimiser == "sgd":
        shared |= dict(momentum=training.momentum, nesterov=training.momentum > 0)
        optimiser = torch.optim.SGD(given, **shared)
    # A training of few epochs warms up for at most half of them.
    steps = epochs * steps_per_epoch
    warmup = min(training.warmup_epochs * steps_per_epoch, steps // 2)
    total = max(steps, warmup + 1)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
