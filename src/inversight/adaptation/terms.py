"""Terms of the guidance: scalar losses of the target's outputs for a batch of generated images."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from inversight.attacks.objectives import entropy, max_margin
from inversight.models.activations import BatchNormInput, record_batch_norms, record_convolutions
from inversight.models.target import Target

Need = Literal["layers", "maps", "critic"]
"""What a term may use besides the logits: see :class:`Observation`."""


@dataclass(frozen=True)
class Observation:
    """The target's logits (N, K) of a batch, and the activations that were requested.

    layers: its batch normalisations; maps: the outputs (N, C, H, W) of its convolutions; classes (N,):
    what the images were generated for, where the generator knows classes; critic (N, K'): the
    discriminator's class logits, where it has them.
    """

    logits: Tensor
    layers: tuple[BatchNormInput, ...] = ()
    maps: tuple[Tensor, ...] = ()
    classes: Tensor | None = None
    critic: Tensor | None = None

    def first(self, n: int) -> Observation:
        """Return the observation of the first n images."""
        return Observation(
            self.logits[:n],
            tuple(replace(one, values=one.values[:n]) for one in self.layers),
            tuple(one[:n] for one in self.maps),
            None if self.classes is None else self.classes[:n],
            None if self.critic is None else self.critic[:n],
        )


def observe(target: Target, images: Tensor, needs: Collection[Need] = ()) -> Observation:
    """Evaluate the target on images (N, C, H, W) in [0, 1] and record what ``needs`` names.

    Layers and maps are in the order in which they are called.
    """
    with ExitStack() as stack:
        layers, maps = [], []
        if "layers" in needs:
            layers = stack.enter_context(record_batch_norms(target.module))
        if "maps" in needs:
            maps = stack.enter_context(record_convolutions(target.module))
        logits = target(images)
    return Observation(logits, tuple(layers), tuple(maps))


class Term(Protocol):
    """Observation -> scalar, differentiable; ``needs``: what it looks at beside the logits."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> tuple[Need, ...]: ...

    def __call__(self, seen: Observation) -> Tensor: ...


@dataclass(frozen=True)
class Entropy:
    """Mean entropy of the target's predictions, in [0, log K]; low if it is confident in every image.

    Li et al. 2025.
    """

    name: str = "entropy"
    needs: tuple[Need, ...] = ()

    def __call__(self, seen: Observation) -> Tensor:
        return entropy(seen.logits).mean()


@dataclass(frozen=True)
class Balance:
    """Minus the entropy of the mean prediction, in [-log K, 0]: the images spread over the classes.

    With :class:`Entropy` it is minus the mutual information of image and prediction (Krause et al.
    2010, "Discriminative clustering by regularized information maximization", eq. 3).
    """

    name: str = "balance"
    needs: tuple[Need, ...] = ()

    def __call__(self, seen: Observation) -> Tensor:
        mean = seen.logits.softmax(1).mean(0)
        return (mean * mean.clamp_min(1e-12).log()).sum()


@dataclass(frozen=True)
class Statistics:
    """Distance, >= 0, of the batch's statistics from the target's running statistics.

    Kullback-Leibler divergence of normal distributions, KL(batch || training), mean over channels
    and layers. The running statistics of batch normalisations are the one thing about all private
    images together that a target keeps in the open; Yin et al. 2020 ("Dreaming to distill",
    DeepInversion, eq. 4) regularise single images by them, here they move the prior.
    """

    name: str = "statistics"
    needs: tuple[Need, ...] = ("layers",)

    def __call__(self, seen: Observation) -> Tensor:
        return torch.stack([_divergence(layer) for layer in seen.layers]).mean()


@dataclass(frozen=True)
class Spread:
    """Mean likeness of images that the target takes for one class, in [-1, 1]: they shall differ.

    Likeness is the cosine of what the target's last convolution gives, each less the batch's mean;
    pairs count by the probability that both images are of one class, which nothing terms at. Mode
    seeking (Mao et al. 2019, "Mode seeking generative adversarial networks") pushes apart what
    different latents make; here it is only images of one class that have to differ, since it is
    there that reconstructions collapse onto one image.
    """

    name: str = "spread"
    needs: tuple[Need, ...] = ("maps",)

    def __call__(self, seen: Observation) -> Tensor:
        outputs = seen.maps[-1].flatten(1)
        outputs = outputs - outputs.mean(0, keepdim=True).detach()
        outputs = outputs / outputs.norm(dim=1, keepdim=True).clamp_min(1e-8)
        probabilities = seen.logits.detach().softmax(1)
        together = (probabilities @ probabilities.T).fill_diagonal_(0.0)
        alike: Tensor = (together * (outputs @ outputs.T)).sum()
        return alike / together.sum().clamp_min(1e-6)


@dataclass(frozen=True)
class Margin:
    """Mean max-margin loss of the classes that images were generated for, in (-inf, inf).

    Yuan et al. 2023 (PLG-MI), eq. 5: the target puts them there, the further ahead the better.
    """

    name: str = "margin"
    needs: tuple[Need, ...] = ()

    def __call__(self, seen: Observation) -> Tensor:
        return max_margin(seen.logits, seen.classes).mean()


@dataclass(frozen=True)
class CriticEntropy:
    """Mean entropy of the discriminator's class predictions, in [0, log K].

    Chen et al. 2021 (KED-MI), their lambda_h's term.
    """

    name: str = "critic_entropy"
    needs: tuple[Need, ...] = ("critic",)

    def __call__(self, seen: Observation) -> Tensor:
        if seen.critic is None:
            raise ValueError("this term needs a discriminator that tells classes apart")
        return entropy(seen.critic).mean()


def _divergence(layer: BatchNormInput) -> Tensor:
    dims = [0, *range(2, layer.values.dim())]
    mean = layer.values.mean(dims)
    variance = layer.values.var(dims, unbiased=False) + 1e-5
    reference = layer.variance + 1e-5
    ratio = variance / reference
    off = (mean - layer.mean).square() / reference
    return 0.5 * (ratio - 1.0 - ratio.log() + off).mean()
