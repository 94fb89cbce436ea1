"""Trains a target, an evaluator or a public feature network: one loop for all three.

A :class:`Variation` is how a training differs from the plain one; defences are made of it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.core.errors import StageError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import draw_seed, generator
from inversight.data import ImageSet, split
from inversight.models.networks import (
    PLAIN_NETWORK,
    Classifier,
    NetworkOptions,
    SavedClassifier,
    build_classifier,
)
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


class Stepping(Protocol):
    """Which images make a batch, and how gradients are applied."""

    def batches(self, images: int, batch_size: int, rng: torch.Generator) -> Sequence[Tensor]:
        """Return the positions in [0, images), int64, of each step of one epoch."""

    def prepare(
        self, module: Classifier, optimiser: torch.optim.Optimizer, seed: int
    ) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
        """Return the optimiser to use, and a function that removes any hooks from the module."""


@dataclass(frozen=True)
class Shuffled:
    """Each image once an epoch in random order, plain gradients."""

    def batches(self, images: int, batch_size: int, rng: torch.Generator) -> Sequence[Tensor]:
        parts = torch.randperm(images, generator=rng).split(batch_size)
        # Batch normalisation needs two images.
        return [part for part in parts if len(part) > 1 or images == 1]

    def prepare(
        self, module: Classifier, optimiser: torch.optim.Optimizer, seed: int
    ) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
        return optimiser, lambda: None


@dataclass(frozen=True)
class Variation:
    """How a training differs from the plain one; the default is the plain one.

    weights: (N,) >= 0, factor of each image's term in the recipe's loss, in training and validation;
    the sum is still divided by the number of images. change: applied to images before the recipe's
    augmentation. loss: replaces the recipe's; weights are not applied to it. held_loss: replaces the
    recipe's in early stopping. soft: (N, K), labels of each image for these two losses. settles:
    fraction of the training during which no epoch can be the best, for losses that change. network:
    options of the network. normalisation: mean and standard deviation of each channel, instead of
    the training images'. start: initial values by name, instead of random ones. frozen: names of
    modules that are not trained, running statistics included. stepping: batches and optimiser.
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
    stepping: Stepping = field(default_factory=Shuffled)


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
    n = len(images)
    draws = torch.rand(n, 5, generator=rng) * 2.0 - 1.0
    angle = draws[:, 0] * math.radians(training.rotation)
    scale = 1.0 + draws[:, 1] * training.shift
    mirror = torch.where(draws[:, 2] < 0, -1.0, 1.0) if training.flip else torch.ones(n)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = mirror * scale * angle.cos()
    theta[:, 0, 1] = -scale * angle.sin()
    theta[:, 1, 0] = mirror * scale * angle.sin()
    theta[:, 1, 1] = scale * angle.cos()
    # affine_grid's unit is half an image, hence the factor of two.
    theta[:, :, 2] = 2.0 * training.shift * draws[:, 3:5]
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train_classifier(
    images: ImageSet,
    *,
    training: Training,
    image_shape: tuple[int, int, int],
    rng: torch.Generator,
    progress: Progress = silent,
    device: torch.device | str = "cpu",
    variation: Variation = PLAIN,
) -> TrainedClassifier:
    """Train a small classifier on ``images`` at ``image_shape`` (C, S, S) and keep the best epoch.

    The best epoch has the lowest validation loss; it is the last one if no class has images to spare
    for validation. Every ``variation`` is trained by the recipe and budget of ``training``, and its
    random draws do not change the others.

    Raises:
        StageError: the loss stopped being a number.
    """
    rest, held_out = (
        split(images, training.validation, rng=rng) if training.validation else (images, None)
    )
    place = {name: row for row, name in enumerate(images.ids)}
    fit = _Part.of(rest, place, variation, image_shape, device)
    validation = _Part.of(held_out, place, variation, image_shape, device) if held_out else None
    if variation.normalisation is None:
        mean, std = channel_statistics(fit.images.cpu())
    else:
        mean, std = (torch.tensor(values) for values in variation.normalisation)
    built = build_classifier(
        training.architecture,
        classes=images.classes,
        image_shape=image_shape,
        width=training.width,
        mean=mean.tolist(),
        std=std.tolist(),
        rng=rng,
        options=variation.network,
    )
    normalise = Normalise(mean, std).to(device)
    module = built.module.to(device)
    module.load_state_dict({**module.state_dict(), **variation.start})
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not _is_inside(name, variation.frozen))
    epochs = training.epochs_for(len(fit.images))
    optimiser, schedule = _optimiser(
        module, training, epochs, math.ceil(len(fit.images) / training.batch_size)
    )
    seed = draw_seed(rng)
    optimiser, release = variation.stepping.prepare(module, optimiser, seed)
    best_loss, best_epoch = math.inf, 0
    best_state = copy.deepcopy(module.state_dict())
    epoch = 0
    for epoch in range(1, epochs + 1):
        step_rng = generator(seed, epoch)
        # Generators of their own, so that a variation leaves the draws of the plain training alone.
        change_rng, loss_rng = generator(seed, epoch, "change"), generator(seed, epoch, "loss")
        module.train()
        for name, child in module.named_modules():
            if _is_inside(name, variation.frozen):
                child.eval()
        batches = variation.stepping.batches(len(fit.images), training.batch_size, step_rng)
        for step, index in enumerate(batches):
            batch = fit.select(index)
            chosen = batch.images
            if variation.change is not None:
                chosen = variation.change(chosen, batch.rows, change_rng)
            inputs = normalise(augment(chosen, training, step_rng))
            if variation.loss is not None:
                done = (epoch - 1 + step / len(batches)) / epochs
                loss = variation.loss(module, Batch(inputs, batch.targets, done, loss_rng))
            else:
                loss = recipe_loss(module(inputs), batch.labels, training, batch.weights)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            if not math.isfinite(last := float(loss.detach())):
                raise StageError(
                    f"training diverged in epoch {epoch}: the loss is {last}; "
                    "lower training.learning_rate"
                )
        note = f"loss {last:.3f}"
        if validation is not None:
            module.eval()
            with torch.inference_mode():
                logits = module(normalise(validation.images))
                validation_loss = float(
                    recipe_loss(logits, validation.labels, training, validation.weights)
                    if variation.held_loss is None
                    else variation.held_loss(logits, validation.targets)
                )
            note += f", validation {validation_loss:.3f}"
            settled = epoch == epochs or epoch - 1 >= variation.settles * epochs
            if settled and validation_loss < best_loss:
                best_loss, best_epoch = validation_loss, epoch
                best_state = copy.deepcopy(module.state_dict())
            elif settled and epoch - best_epoch >= training.patience:
                break
        progress(epoch, epochs, note)
    release()
    if validation is not None:
        module.load_state_dict(best_state)
    progress(epochs, epochs, "stopped early" if epoch < epochs else "")
    module.eval().requires_grad_(False).cpu()
    normalise.cpu()
    return TrainedClassifier(
        classifier=replace(built, module=module),
        epochs=epoch,
        train_accuracy=_accuracy(module, normalise, fit),
        validation_accuracy=None
        if validation is None
        else _accuracy(module, normalise, validation),
    )


@dataclass(frozen=True)
class _Part:
    """The images of one split and what losses take for each.

    rows: (N,) positions in the whole set, on the CPU. images: (N, C, S, S) in [0, 1]. labels: (N,).
    targets: the labels, or the variation's soft ones (N, K). weights: (N,) or None.
    """

    rows: Tensor
    images: Tensor
    labels: Tensor
    targets: Tensor
    weights: Tensor | None

    @classmethod
    def of(
        cls,
        part: ImageSet,
        place: Mapping[str, int],
        variation: Variation,
        image_shape: tuple[int, int, int],
        device: torch.device | str,
    ) -> _Part:
        """Bring images to the network's shape, and all to ``device``; ``place``: row of each id."""
        rows = torch.tensor([place[name] for name in part.ids])
        x = part.floats(size=image_shape[1], channels=image_shape[0])
        labels = part.labels.to(device)
        targets = labels if variation.soft is None else variation.soft[rows].to(device)
        weights = None if variation.weights is None else variation.weights[rows].to(device)
        return cls(rows, x.to(device), labels, targets, weights)

    def select(self, index: Tensor) -> _Part:
        """Return the images at positions ``index``, int64."""
        there = index.to(self.images.device)
        weights = None if self.weights is None else self.weights[there]
        return _Part(
            self.rows[index], self.images[there], self.labels[there], self.targets[there], weights
        )


class Normalise(nn.Module):
    """(image - mean) / std for each channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean[None, :, None, None].clone())
        self.register_buffer("std", std[None, :, None, None].clone())

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def rotation_task(images: ImageSet) -> ImageSet:
    """Return every image turned by 0, 90, 180 and 270 degrees, labelled by the angle.

    The pretext task for public images without classes (Gidaris et al. 2018): a network that
    predicts the angle has learnt features of the images.
    """
    turned = torch.cat([torch.rot90(images.images, k, dims=(2, 3)) for k in range(4)])
    n = len(images)
    return ImageSet(
        images=turned,
        labels=torch.arange(4).repeat_interleave(n),
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


def _accuracy(module: nn.Module, normalise: Normalise, part: _Part) -> float:
    x, y = normalise(part.images.cpu()), part.labels.cpu()
    with torch.inference_mode():
        hits = [module(a).argmax(1) == b for a, b in zip(x.split(256), y.split(256), strict=True)]
    return float(torch.cat(hits).float().mean())


def _optimiser(
    module: nn.Module, training: Training, epochs: int, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimiser: torch.optim.Optimizer
    if training.optimiser == "sgd":
        optimiser = torch.optim.SGD(
            module.parameters(),
            lr=training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            nesterov=training.momentum > 0,
        )
    else:
        optimiser = torch.optim.AdamW(
            module.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
    # A training of few epochs warms up for at most half of them.
    warmup = min(training.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch // 2)
    total = max(epochs * steps_per_epoch, warmup + 1)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
