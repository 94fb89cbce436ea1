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
    """What one step sees.

    inputs (B, C, S, S), augmented and normalised as the network takes them; labels (B,) int64, or
    (B, K) where the variation has soft ones; done in [0, 1), the share of the training that lies
    behind; rng for what the loss draws.
    """

    inputs: Tensor
    labels: Tensor
    done: float
    rng: torch.Generator


Change = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""Images (B, C, S, S) in [0, 1] and their rows (B,) in the image set -> images of that shape."""
Loss = Callable[[Classifier, Batch], Tensor]
"""Network and batch -> what the step lowers, a scalar."""
HeldLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, K) and labels of the validation split, (N,) or soft, -> what early stopping looks at, a
scalar."""


class Stepping(Protocol):
    """Which images a step sees, and what is done with their gradients."""

    def batches(self, images: int, batch_size: int, rng: torch.Generator) -> Sequence[Tensor]:
        """Positions in [0, images) for each step of one epoch, int64."""

    def prepare(
        self, module: Classifier, optimiser: torch.optim.Optimizer, seed: int
    ) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
        """What steps instead of the optimiser, and what takes off the module what this put on it."""


@dataclass(frozen=True)
class Shuffled:
    """Each image once an epoch in random order; plain gradients."""

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

    weights: (N,) at least 0, what each image of the set counts for in the recipe's loss, in steps
    and in validation; a batch's loss stays divided by its images, so weight w is w times the
    gradient. change: done to images before the recipe's augmentation. loss: instead of the
    recipe's; weights do not reach it. held_loss: instead of the recipe's in early stopping. soft:
    (N, K), what these two losses are given for each image of the set instead of its label. settles:
    the share of the training before which no epoch can be the best one, for losses that change.
    network: options of the network. normalisation: mean and standard deviation of each channel,
    instead of the training images' own. start: initial values by name, instead of random ones.
    frozen: modules by name that stay as they are, running statistics too. stepping: see there.
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
    """Mean of -(1 - p_y)^gamma log p_y (Lin et al. 2017, eq. 4 without alpha); gamma 0 is cross-entropy.

    With ``weights`` (N,) each image's term is multiplied by its own; the mean stays over N.
    """
    log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
    each = (1.0 - log_p.exp()).pow(gamma) * log_p
    return -(each if weights is None else each * weights).mean()


def augment(images: Tensor, training: Training, rng: torch.Generator) -> Tensor:
    """Random mirror, shift, scale and rotation of each image (N, C, H, W), one resampling."""
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
    """Train a small classifier on ``images`` at ``image_shape`` (C, S, S), best epoch kept.

    The best epoch is the one with the lowest validation loss, or the last one where no class has
    images to spare for validation. Whatever the ``variation``, recipe and budget are those of
    ``training``, and what a variation draws takes nothing from the other draws.

    Raises:
        StageError: the loss stopped being a number.
    """
    channels, size, _ = image_shape
    fit_set, held = (
        split(images, training.validation, rng=rng) if training.validation else (images, None)
    )
    if held is not None and len(held) == 0:
        held = None
    x = fit_set.floats(size=size, channels=channels)
    if variation.normalisation is None:
        mean, std = channel_statistics(x)
    else:
        mean, std = (torch.tensor(values) for values in variation.normalisation)
    built = build_classifier(
        training.architecture,
        classes=images.classes,
        image_shape=image_shape,
        width=training.width,
        mean=[float(m) for m in mean],
        std=[float(s) for s in std],
        rng=rng,
        options=variation.network,
    )
    normalise = Normalise(mean, std).to(device)
    module = built.module.to(device)
    module.load_state_dict({**module.state_dict(), **variation.start})
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not _within(name, variation.frozen))
    row_of = {name: row for row, name in enumerate(images.ids)}
    rows = torch.tensor([row_of[name] for name in fit_set.ids])

    def weights_of(part: ImageSet) -> Tensor | None:
        if variation.weights is None:
            return None
        return variation.weights[[row_of[name] for name in part.ids]].to(device)

    def lesson(part: ImageSet) -> Tensor:
        if variation.soft is None:
            return part.labels.to(device)
        return variation.soft[[row_of[name] for name in part.ids]].to(device)

    weight = weights_of(fit_set)
    weight_held = weights_of(held) if held is not None else None
    x, y = x.to(device), fit_set.labels.to(device)
    x_held = held.floats(size=size, channels=channels).to(device) if held is not None else None
    y_held = held.labels.to(device) if held is not None else None
    taught, taught_held = lesson(fit_set), lesson(held) if held is not None else None

    epochs = training.epochs_for(len(x))
    optimiser, schedule = _optimiser(
        module, training, epochs, math.ceil(len(x) / training.batch_size)
    )
    seed = draw_seed(rng)
    optimiser, release = variation.stepping.prepare(module, optimiser, seed)
    best_loss, best_epoch = math.inf, 0
    best_state = copy.deepcopy(module.state_dict())
    epoch = 0
    for epoch in range(1, epochs + 1):
        step_rng = generator(seed, epoch)
        # Generators of their own, so that the draws of the plain training stay what they are.
        change_rng, loss_rng = generator(seed, epoch, "change"), generator(seed, epoch, "loss")
        module.train()
        for name, child in module.named_modules():
            if _within(name, variation.frozen):
                child.eval()
        batches = variation.stepping.batches(len(x), training.batch_size, step_rng)
        for step, index in enumerate(batches):
            there = index.to(device)
            chosen = x[there]
            if variation.change is not None:
                chosen = variation.change(chosen, rows[index], change_rng)
            inputs = normalise(augment(chosen, training, step_rng))
            if variation.loss is not None:
                done = (epoch - 1 + step / len(batches)) / epochs
                loss = variation.loss(module, Batch(inputs, taught[there], done, loss_rng))
            else:
                some = weight[there] if weight is not None else None
                loss = recipe_loss(module(inputs), y[there], training, some)
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
        if x_held is not None and y_held is not None and taught_held is not None:
            module.eval()
            with torch.inference_mode():
                answers = module(normalise(x_held))
                held_loss = float(
                    recipe_loss(answers, y_held, training, weight_held)
                    if variation.held_loss is None
                    else variation.held_loss(answers, taught_held)
                )
            note += f", validation {held_loss:.3f}"
            settled = epoch == epochs or epoch - 1 >= variation.settles * epochs
            if settled and held_loss < best_loss:
                best_loss, best_epoch = held_loss, epoch
                best_state = copy.deepcopy(module.state_dict())
            elif settled and epoch - best_epoch >= training.patience:
                break
        progress(epoch, epochs, note)
    release()
    if x_held is not None:
        module.load_state_dict(best_state)
    progress(epochs, epochs, "stopped early" if epoch < epochs else "")
    module.eval().requires_grad_(False)
    return TrainedClassifier(
        classifier=replace(built, module=module.cpu()),
        epochs=epoch,
        train_accuracy=_accuracy(module, normalise.cpu()(x.cpu()), y.cpu()),
        validation_accuracy=(
            _accuracy(module, normalise(x_held.cpu()), y_held.cpu())
            if x_held is not None and y_held is not None
            else None
        ),
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
    """Every image turned by 0, 90, 180 and 270 degrees, labelled by the turn.

    The pretext task for public images without classes (Gidaris et al. 2018): a network that can
    tell the turn has learnt what the images look like.
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
    """Mean and standard deviation of each channel of images (N, C, H, W), each (C,)."""
    return images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3)).clamp_min(1e-3)


def recipe_loss(
    logits: Tensor, labels: Tensor, training: Training, weights: Tensor | None = None
) -> Tensor:
    """The recipe's loss, a mean over images, each multiplied by its weight if there are weights (N,)."""
    if training.loss == "focal":
        return focal_loss(logits, labels, training.gamma, weights)
    if weights is None:
        return F.cross_entropy(logits, labels)
    return (F.cross_entropy(logits, labels, reduction="none") * weights).mean()


def _within(name: str, modules: Sequence[str]) -> bool:
    """Whether ``name`` is one of ``modules`` or something inside one."""
    return any(name == module or name.startswith(module + ".") for module in modules)


def _accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
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
