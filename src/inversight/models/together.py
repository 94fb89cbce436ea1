"""Train several small classifiers at once, as one network with a group of channels for each.

At batches of small images a training step is mostly the overhead of its operations, which all models
share here. Each model is what :func:`~inversight.models.training.train_classifier` would make of its
images without a validation split, up to rounding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from inversight.core.errors import StageError
from inversight.core.progress import Figures, Progress, silent
from inversight.core.seeding import draw_seed, generator
from inversight.data import ImageSet
from inversight.models.networks import Classifier, SavedClassifier, build_classifier
from inversight.models.training import (
    Stepping,
    augment_by,
    augmentation_draws,
    build_optimiser,
    channel_statistics,
    recipe_loss,
)
from inversight.settings import Training


class GroupedLinear(nn.Module):
    """M linear layers side by side: (B, M x D) -> (B, M x K)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([one.weight.detach() for one in layers]))
        self.bias = nn.Parameter(torch.stack([one.bias.detach() for one in layers]))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.view(len(x), len(self.weight), -1)
        found = torch.einsum("bmd,mkd->bmk", parts, self.weight) + self.bias
        return found.flatten(1)


def join_models(models: Sequence[Classifier]) -> Classifier:
    """Return M equal networks as one: input (B, M x C, S, S), output (B, M x K).

    Channels of model m are the m-th of M equal parts, in every layer.
    """
    joined = copy.deepcopy(models[0])
    for name, layer in list(joined.named_modules()):
        layers = [one.get_submodule(name) for one in models]
        made: nn.Module
        match layer:
            case nn.Conv2d():
                made = nn.Conv2d(
                    layer.in_channels * len(models), layer.out_channels * len(models),
                    layer.kernel_size, layer.stride, layer.padding, groups=len(models), bias=False,  # type: ignore[arg-type]
                )  # fmt: skip
            case nn.BatchNorm2d():
                made = nn.BatchNorm2d(layer.num_features * len(models))
            case nn.Linear():
                made = GroupedLinear([one for one in layers if isinstance(one, nn.Linear)])
            case _:
                continue
        if not isinstance(made, GroupedLinear):
            states = [one.state_dict() for one in layers]
            made.load_state_dict(
                {
                    key: torch.cat([state[key] for state in states]) if value.dim() else value
                    for key, value in states[0].items()
                }
            )
        parent, _, child = name.rpartition(".")
        holder = joined.get_submodule(parent)
        if isinstance(holder, (nn.ModuleList, nn.Sequential)):
            holder[int(child)] = made
        else:
            setattr(holder, child, made)
    return joined


def split_models(joined: Classifier, models: Sequence[Classifier]) -> None:
    """Load the parts of ``joined`` (:func:`join_models`) back into the ``models`` that it was made of."""
    whole = joined.state_dict()
    for number, one in enumerate(models):
        state = {}
        for key, value in one.state_dict().items():
            if not value.dim():
                state[key] = whole[key]
            elif whole[key].dim() == value.dim() + 1:  # a grouped linear layer
                state[key] = whole[key][number]
            else:
                state[key] = whole[key][number * len(value) : (number + 1) * len(value)]
        one.load_state_dict(state)


_LEAST_CHANNELS = 8
"""Channels below which images are not laid out channels last: PyTorch 2.15 then writes outside its memory on
AMD processors, and the process ends."""


def train_together(
    sets: Sequence[ImageSet], *, training: Training, image_shape: tuple[int, int, int],
    rngs: Sequence[torch.Generator], progress: Progress = silent, device: torch.device | str = "cpu",
    normalise_by: Callable[[Tensor], tuple[Tensor, Tensor]] = channel_statistics,
) -> list[SavedClassifier]:  # fmt: skip
    """Train a classifier on each of ``sets``, all of one size, to the last epoch.

    Args:
        sets: M sets of N images with the same classes.
        rngs: M generators, from which initial weights, batches and augmentation are drawn as in
            :func:`~inversight.models.training.train_classifier`.

    Raises:
        ValueError: sets of different sizes.
        StageError: a loss stopped being a number.
    """
    count, images = len(sets), len(sets[0])
    if any(len(one) != images for one in sets):
        raise ValueError(f"expected sets of one size, found {[len(one) for one in sets]}")
    channels, size, _ = image_shape
    pixels = torch.stack([one.floats(size=size, channels=channels) for one in sets])
    statistics = [normalise_by(one) for one in pixels]
    built, seeds = [], []
    for one, (mean, std), rng in zip(sets, statistics, rngs, strict=True):
        built.append(
            build_classifier(
                training.architecture, classes=one.classes, image_shape=image_shape,
                width=training.width, mean=mean.tolist(), std=std.tolist(), rng=rng,
            )
        )  # fmt: skip
        seeds.append(draw_seed(rng))
    # The same numbers in the same order as the models have them.
    means, deviations = (
        torch.tensor([getattr(one, name) for one in built], device=device).view(count, 1, -1, 1, 1)
        for name in ("mean", "std")
    )
    pixels = pixels.to(device)
    labels = torch.stack([one.labels for one in sets]).to(device)
    modules = [one.module for one in built]
    wide = count * training.width >= _LEAST_CHANNELS
    layout = torch.channels_last if wide else torch.contiguous_format
    joined = join_models(modules).to(device).to(memory_format=layout)
    epochs = training.epochs_for(images)
    optimiser, schedule = build_optimiser(
        joined.parameters(), training, epochs, math.ceil(images / training.batch_size)
    )
    stepping, models = Stepping(), torch.arange(count, device=device)[:, None]
    joined.train()
    for epoch in range(1, epochs + 1):
        step_rngs = [generator(seed, epoch) for seed in seeds]
        orders = [stepping.batches(images, training.batch_size, rng) for rng in step_rngs]
        for parts in zip(*orders, strict=True):
            rows = torch.stack(parts).to(device)
            batch = rows.shape[1]
            x = pixels[models, rows].flatten(0, 1)
            draws = torch.cat([augmentation_draws(batch, rng) for rng in step_rngs])
            x = augment_by(x, draws, training).unflatten(0, (count, batch))
            x = ((x - means) / deviations).transpose(0, 1).flatten(1, 2)
            logits = joined(x.contiguous(memory_format=layout))
            logits = logits.view(batch, count, -1).transpose(0, 1).flatten(0, 1)
            # A mean over all models' images: times their number, each model has its own mean's gradient.
            loss = count * recipe_loss(logits, labels[models, rows].flatten(), training)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
        if not math.isfinite(last := float(loss.detach())):
            raise StageError(
                f"training diverged in epoch {epoch}: the loss is {last}; "
                "lower training.learning_rate"
            )
        progress(epoch, epochs, Figures(f"loss {last / count:.3f}", loss=last / count))
    split_models(joined.cpu().to(memory_format=torch.contiguous_format), modules)
    for module in modules:
        module.eval().requires_grad_(False)
    return built
