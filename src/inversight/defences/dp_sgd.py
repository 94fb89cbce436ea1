"""DP-SGD: a bound on the influence of any one training image on the model.

Paper: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, by opacus (Yousefpour et al.
2021; the extra ``dp``). Each step draws its images independently (Poisson sampling), clips each image's
gradient to ``clip`` and adds normal noise; opacus's accountant finds the noise for which all steps
together are (epsilon, delta)-differentially private, for neighbours that differ by one image added or
removed.
Protects: all private images alike, against any attack with any access. It is trained on all of them:
noise and clipping for the protected images only would give no guarantee for anyone, since the steps on
the others depend on the model that those images trained. So ``protected`` is ignored, and there is no
early stopping on private images and no statistic of them: normalisation is by public images' mean and
standard deviation, groups of channels replace batches in the network.
Does not protect: what many images share, a class's face where a class has many images of it: the bound
is for one image. The number of images counts as known. Choosing among several such models by their
accuracy on private images costs privacy that is not counted here. The noise comes from a seeded
generator so that runs repeat (opacus's ``secure_mode`` is off): the guarantee holds against those who
do not know the seed and neglects floating-point attacks; keep the seed of a published model secret.
Costs: much accuracy where images are few, since the noise grows with the share of images in a step;
per-image gradients take memory in proportion to the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from inversight.core.config import settings
from inversight.core.errors import InputError
from inversight.core.seeding import follow, generator
from inversight.defences.base import DefenceData, FitContext, TrainingDefence, TrainingPlan
from inversight.models.networks import Classifier, NetworkOptions
from inversight.models.training import Batch, Stepping, Variation, channel_statistics

Probability = Annotated[float, Field(gt=0.0, lt=1.0)]


REPLACED = "group normalisation in place of batch normalisation"
"""How the privately trained network differs, since a batch's statistics would mix its images."""


@settings
class DPSGD(TrainingDefence):
    """Differentially private training on all private images."""

    name = "dp-sgd"

    epsilon: PositiveFloat = 8.0
    """The guarantee's epsilon; 8 is a common choice for images, below 1 a strong guarantee."""
    delta: Probability | None = None
    """The guarantee's delta, below 1 / images; by default images^-1.1."""
    clip: PositiveFloat = 1.0
    """Largest Euclidean norm of an image's gradient (opacus's examples: 1)."""
    batch_size: PositiveInt | None = None
    """Mean number of images in a step; by default the recipe's. More give less noise but fewer steps."""
    accountant: Literal["rdp", "prv"] = "rdp"
    """Privacy accountant: rdp (Mironov 2017) or prv (Gopi et al. 2021), which is tighter and slower."""

    def check_network(self, module: nn.Module) -> str | None:
        """Return what is replaced in a network like ``module``, None if nothing is.

        Raises:
            InputError: opacus is missing, or the network has weights without gradients per image.
        """
        import_opacus()
        if names := computed_weights(module):
            raise InputError(
                f"dp-sgd: {names[0]} has spectral normalisation or another parametrisation, for whose "
                "weights there are no gradients of single images; remove it from the network, or leave "
                "dp-sgd out"
            )
        count = sum(isinstance(one, _BatchNorm) for one in module.modules())
        return f"{REPLACED} in {count} layers" if count else None

    def plan(self, data: DefenceData, context: FitContext) -> TrainingPlan:
        """Train privately on all private images for the recipe's epochs, by its optimiser.

        Raises:
            InputError: opacus is missing, there are no public images, or delta is too large.
        """
        opacus = import_opacus()
        images = len(data.private)
        delta = images**-1.1 if self.delta is None else self.delta
        if delta >= 1.0 / images:
            raise InputError(
                f"dp-sgd: expected delta below 1 / {images} images, found {delta:g}; a larger one "
                "allows giving whole images away"
            )
        if len(data.public) == 0:
            raise InputError(
                "dp-sgd: needs public images for the normalisation, since private images' mean and "
                "standard deviation would leak; give --public DIR"
            )
        batch_size = min(images, self.batch_size or data.training.batch_size)
        training = replace(data.training, validation=0.0, batch_size=batch_size)
        steps = training.epochs_for(images) * math.ceil(images / batch_size)
        rate = batch_size / images
        noise = noise_multiplier(self.epsilon, delta, rate, steps, self.accountant)
        accountant = opacus.accountants.create_accountant(self.accountant)
        channels, size, _ = data.image_shape
        mean, std = channel_statistics(data.public.floats(size=size, channels=channels))
        stepping = PrivateSteps(
            noise, self.clip, batch_size,
            on_step=lambda: accountant.step(noise_multiplier=noise, sample_rate=rate),
        )  # fmt: skip
        variation = Variation(
            loss=mean_cross_entropy, network=NetworkOptions(norm="group"), stepping=stepping,
            normalisation=(mean.tolist(), std.tolist()),
        )  # fmt: skip
        return TrainingPlan(
            variation, training=training, facts={
                "delta": delta, "noise_multiplier": noise, "clip": self.clip, "sample_rate": rate,
                "steps": steps, "normalisation": REPLACED,
            },
            final_facts=lambda: {"epsilon": round(float(accountant.get_epsilon(delta=delta)), 4)},
        )  # fmt: skip


@cache
def noise_multiplier(
    epsilon: float, delta: float, sample_rate: float, steps: int, accountant: str
) -> float:
    """Return the smallest noise, as a multiple of the clipping norm, that guarantees (epsilon, delta)."""
    found = import_opacus().accountants.utils.get_noise_multiplier(
        target_epsilon=epsilon, target_delta=delta, sample_rate=sample_rate, steps=steps,
        accountant=accountant,
    )  # fmt: skip
    return float(found)


@dataclass(frozen=True)
class PrivateSteps(Stepping):
    """Poisson-sampled steps with clipped and noised per-image gradients.

    noise: standard deviation of the noise as a multiple of ``clip``. images: mean number of images
    in a step. on_step: called after each step.
    """

    noise: float
    clip: float
    images: int
    on_step: Callable[[], None]

    def batches(self, images: int, batch_size: int, rng: torch.Generator) -> Sequence[Tensor]:
        """Draw each image for each step with probability ``batch_size / images``; a step may be empty."""
        steps = math.ceil(images / batch_size)
        drawn = torch.rand(steps, images, generator=rng) < batch_size / images
        return [row.nonzero().squeeze(1) for row in drawn]

    @staticmethod
    def check(module: nn.Module) -> None:
        """Check that every weight has a gradient for each image alone.

        Raises:
            InputError: batch normalisation, or weights that are computed from others.
        """
        replaced = DPSGD().check_network(module)
        if replaced is not None:
            raise InputError(
                "dp-sgd: the network has batch normalisation, which mixes the images of a batch; build it "
                'with NetworkOptions(norm="group")'
            )

    def prepare(
        self, module: Classifier, optimiser: torch.optim.Optimizer, seed: int
    ) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
        opacus = import_opacus()
        self.check(module)
        device = next(module.parameters()).device
        hooked = opacus.GradSampleModule(module)
        private = opacus.optimizers.DPOptimizer(
            optimiser, noise_multiplier=self.noise, max_grad_norm=self.clip,
            expected_batch_size=self.images, generator=follow(generator(seed, "noise"), device),
        )  # fmt: skip
        private.attach_step_hook(lambda _: self.on_step())
        return private, hooked.to_standard_module


def computed_weights(module: nn.Module) -> list[str]:
    """Return the names of layers whose weights are computed from others, as in spectral normalisation."""
    old = ("SpectralNorm", "WeightNorm")
    return [
        f"{name or 'the network'} ({type(layer).__name__})"
        for name, layer in module.named_modules()
        if is_parametrized(layer)
        or any(type(hook).__name__ in old for hook in layer._forward_pre_hooks.values())
    ]


def mean_cross_entropy(module: Classifier, batch: Batch) -> Tensor:
    """Return the mean cross-entropy, 0 for an empty batch; the guarantee covers this loss alone."""
    # The first layer's hook warns at every step if its input needs no gradient.
    inputs = batch.inputs.detach().requires_grad_(True)
    total = F.cross_entropy(module(inputs), batch.labels, reduction="sum")
    return total / max(1, len(batch.labels))


def import_opacus() -> Any:
    """Return the opacus package with the modules used here imported.

    Raises:
        InputError: it is not installed.
    """
    try:
        import opacus
        import opacus.accountants.utils
        import opacus.optimizers
    except ImportError:
        raise InputError(
            "dp-sgd needs opacus, which is not installed: pip install 'inversight[dp]'"
        ) from None
    return opacus
