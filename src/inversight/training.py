"""Trains a target, an evaluator or a public feature network: one loop for all three."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.config import Fraction, settings
from inversight.data import ImageSet, split
from inversight.errors import StageError
from inversight.networks import Architecture, SavedClassifier, build_classifier
from inversight.progress import Progress, silent
from inversight.seeding import draw_seed, generator


@settings
class Training:
    """How a classifier is trained."""

    architecture: Architecture = "resnet"
    """Network family: resnet (residual blocks) or vgg (plain convolutions)."""
    width: PositiveInt = 16
    """Channels of the first layer; each stage doubles them."""
    epochs: PositiveInt = 60
    """Most passes over the training images; early stopping may end sooner."""
    most_steps: PositiveInt = 6000
    """Most steps in all; large sets get fewer epochs (but at least one)."""
    batch_size: PositiveInt = 16
    """Images a step; small, because small private sets need the steps."""
    optimiser: Literal["sgd", "adamw"] = "adamw"
    """sgd (Nesterov momentum) or adamw."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate, reached after the warm-up, then cosine decay to 0 (paper: SGD 0.1)."""
    momentum: NonNegativeFloat = 0.9
    """Momentum of sgd (paper: 0.9)."""
    weight_decay: NonNegativeFloat = 5e-4
    """Weight decay (paper: 5e-4)."""
    warmup_epochs: NonNegativeInt = 5
    """Epochs of linear warm-up (paper: 5)."""
    loss: Literal["cross-entropy", "focal"] = "cross-entropy"
    """cross-entropy, or focal loss (Lin et al. 2017; the paper's targets, gamma 2)."""
    gamma: NonNegativeFloat = 2.0
    """Focusing parameter of the focal loss."""
    flip: bool = True
    """Augment by mirroring; switch off where left and right matter, as for digits."""
    shift: Fraction = 0.1
    """Augment by random shifts of up to this share of the image size, with as much scaling."""
    rotation: NonNegativeFloat = 8.0
    """Augment by random rotation of up to this many degrees."""
    validation: Fraction = 0.2
    """Share of each class kept for early stopping (never the holdout); 0 trains to the last epoch."""
    patience: PositiveInt = 20
    """Epochs without a better validation loss before training stops."""

    def epochs_for(self, images: int) -> int:
        """Most epochs over so many training images: ``epochs``, or what ``most_steps`` allow."""
        steps_per_epoch = math.ceil(images / self.batch_size)
        return max(1, min(self.epochs, self.most_steps // steps_per_epoch))


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained classifier and how it did: accuracies in [0, 1], loss a mean over images."""

    classifier: SavedClassifier
    epochs: int
    train_accuracy: float
    validation_accuracy: float | None


def focal_loss(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Mean of -(1 - p_y)^gamma log p_y (Lin et al. 2017, eq. 4 without alpha); gamma 0 is cross-entropy."""
    log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
    return -((1.0 - log_p.exp()).pow(gamma) * log_p).mean()


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
) -> TrainedClassifier:
    """Train a small classifier on ``images`` at ``image_shape`` (C, S, S), best epoch kept.

    The best epoch is the one with the lowest validation loss, or the last one where no class has
    images to spare for validation.

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
    mean = x.mean(dim=(0, 2, 3))
    std = x.std(dim=(0, 2, 3)).clamp_min(1e-3)
    built = build_classifier(
        training.architecture,
        classes=images.classes,
        image_shape=image_shape,
        width=training.width,
        mean=[float(m) for m in mean],
        std=[float(s) for s in std],
        rng=rng,
    )
    normalise = Normalise(mean, std).to(device)
    module = built.module.to(device)
    x, y = x.to(device), fit_set.labels.to(device)
    x_held = held.floats(size=size, channels=channels).to(device) if held is not None else None
    y_held = held.labels.to(device) if held is not None else None

    epochs = training.epochs_for(len(x))
    optimiser, schedule = _optimiser(
        module, training, epochs, math.ceil(len(x) / training.batch_size)
    )
    seed = draw_seed(rng)
    best_loss, best_epoch = math.inf, 0
    best_state = copy.deepcopy(module.state_dict())
    epoch = 0
    for epoch in range(1, epochs + 1):
        step_rng = generator(seed, epoch)
        module.train()
        for index in torch.randperm(len(x), generator=step_rng).split(training.batch_size):
            if len(index) < 2 and len(x) > 1:
                continue  # batch normalisation needs two images
            batch = normalise(augment(x[index.to(device)], training, step_rng))
            logits = module(batch)
            loss = _loss(logits, y[index.to(device)], training)
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
        if x_held is not None and y_held is not None:
            module.eval()
            with torch.inference_mode():
                held_loss = float(_loss(module(normalise(x_held)), y_held, training))
            note += f", validation {held_loss:.3f}"
            if held_loss < best_loss:
                best_loss, best_epoch = held_loss, epoch
                best_state = copy.deepcopy(module.state_dict())
            elif epoch - best_epoch >= training.patience:
                break
        progress(epoch, epochs, note)
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


def _loss(logits: Tensor, labels: Tensor, training: Training) -> Tensor:
    if training.loss == "focal":
        return focal_loss(logits, labels, training.gamma)
    return F.cross_entropy(logits, labels)


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
