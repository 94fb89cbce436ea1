"""A recipe that fine-tunes a network of timm by inversight's own loop."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inversight.core.errors import StageError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import derive_seed, generator
from inversight.data import ImageSet
from inversight.models.function_recipe import fault_of
from inversight.models.loaders.timm import (
    build_network,
    layers_of,
    network_config,
    normalisation,
    timm_weights,
    weight_shape,
)
from inversight.models.loaders.weights import load_weights
from inversight.models.own_training import own_random_state
from inversight.models.spec import ModelSpec
from inversight.models.target import Target
from inversight.models.training import train_module
from inversight.settings import Training


@dataclass(frozen=True)
class TimmRecipe:
    """Training of the network that ``spec``, ``timm:NAME[?weights=FILE]``, names.

    It starts from the weights, if there are any, except a head for other classes, which starts at random.
    Every image is trained on, and every epoch of ``training``, whose architecture and width do not matter.

    image_shape: (C, H, W) of the network's input. mean, std: its normalisation; None: timm's.
    """

    spec: str
    training: Training
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def description(self) -> str:
        (_, height, width), t, start = self.image_shape, self.training, ""
        weights, key = self.model.weights, self.model.key
        if weights is not None:  # by content: a path may be private, and given in two ways
            start = f" from weights {hashlib.sha256(weights.read_bytes()).hexdigest()[:8]}"
            start += f" ({key})" if key else ""
        how = f"trained by {t.optimiser} for {t.epochs} epochs"
        return f"{self.model.name}{start} at {height}x{width}, {how}"

    @property
    def model(self) -> ModelSpec:
        """Return the spec in its parts; errors begin with ``--recipe``."""
        return ModelSpec(self.spec, role="--recipe")

    def check(self, images: ImageSet, *, device: torch.device) -> tuple[str, ...]:
        """Build the network without training it; return a warning of weights that are not loaded.

        Raises:
            TargetError: unknown network, weights of another one, or it takes no images of this shape.
        """
        target, skipped, note = self._start(images, seed=0)
        fault = fault_of(target, images)
        if fault:
            raise self.model.error(fault)
        found = [note] if note else []
        if skipped:
            found.append(f"starts {', '.join(skipped)} at random, not from the weights' classes")
        return tuple(f"--recipe {self.spec}: {text}" for text in found)

    def fit(
        self, images: ImageSet, *, seed: int, device: torch.device, progress: Progress = silent
    ) -> Target:
        """Return the network trained on all of ``images``; ``seed`` decides everything random.

        Raises:
            TargetError: as :meth:`check`.
            StageError: training diverged.
        """
        target, *_ = self._start(images, seed=seed)
        # Of PyTorch's own random numbers dropout is made.
        with own_random_state(derive_seed(seed, "dropout") % 2**32, device):
            train_module(
                target.module, images, training=self.training, image_shape=target.image_shape,
                normalisation=(target.mean, target.std), rng=generator(seed), progress=progress,
                device=device,
            )  # fmt: skip
        target.module.eval().requires_grad_(False)
        fault = fault_of(target, images)
        if fault:
            raise StageError(f"--recipe {self.spec}: after training it {fault}")
        return target

    def _start(self, images: ImageSet, *, seed: int) -> tuple[Target, tuple[str, ...], str | None]:
        """Return the untrained network, its tensors without weights, and a note on weights left out."""
        model, (channels, *size) = self.model, self.image_shape
        config, weights, note = network_config(model), None, None
        if model.weights is not None:
            weights, note = timm_weights(model.weights, config, model)
            channels = weight_shape(model, weights, config, "first_conv")[1]
        with own_random_state(derive_seed(seed, "start") % 2**32, torch.device("cpu")):
            module = build_network(
                model, num_classes=len(images.classes), channels=channels, size=(size[0], size[1])
            )
        skipped: tuple[str, ...] = ()
        if weights is not None:
            skipped = load_all_but_head(module, weights, layers_of(config, "classifier"), model)
        mean, std = normalisation(config, channels)
        target = Target(
            module.eval().requires_grad_(False), images.classes, (channels, size[0], size[1]),
            self.mean or mean, self.std or std, self.spec,
        )  # fmt: skip
        return target, skipped, note


def load_all_but_head(
    module: nn.Module, weights: dict[str, Tensor], head: tuple[str, ...], model: ModelSpec
) -> tuple[str, ...]:
    """Load ``weights``; return the names of the head's tensors that they lack or have in another shape.

    head: names of the network's last layers.

    Raises:
        TargetError: they differ elsewhere from what the network has.
    """
    own = module.state_dict()
    skipped = tuple(
        name
        for name, value in own.items()
        if name.startswith(tuple(f"{layer}." for layer in head))
        and (name not in weights or weights[name].shape != value.shape)
    )
    load_weights(module, {**weights, **{name: own[name] for name in skipped}}, model)
    return skipped
