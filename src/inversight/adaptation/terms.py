"""Terms of the guidance: scalar losses of the target's outputs for a batch of generated images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from inversight.attacks.objectives import entropy, max_margin
from inversight.models.activations import BatchNormInput, record_batch_norms, record_convolutions
from inversight.models.target import Target


@dataclass(frozen=True)
class Observation:
    """The target's logits (N, K) of a batch, and what else terms use.

    layers: inputs of its batch normalisations. maps: outputs (N, C, H, W) of its convolutions.
    classes: (N,), the classes that the images were generated for; None for a generator without classes.
    critic: (N, K'), the discriminator's class logits; None for a discriminator without them.
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


Need = Literal["layers", "maps", "critic"]
"""What a term uses besides the logits and classes, see :class:`Observation`."""


def observe(
    target: Target, images: Tensor, needs: Collection[Need] = ("layers", "maps")
) -> Observation:
    """Evaluate the target on images (N, C, H, W) in [0, 1] and record the layers and maps in ``needs``.

    They are in the order in which they are called.
    """
    with ExitStack() as hooks:
        layers: list[BatchNormInput] = []
        maps: list[Tensor] = []
        if "layers" in needs:
            layers = hooks.enter_context(record_batch_norms(target.module))
        if "maps" in needs:
            maps = hooks.enter_context(record_convolutions(target.module))
        logits = target(images)
    return Observation(logits, tuple(layers), tuple(maps))


class Term(ABC):
    """Maps an observation to a scalar loss, differentiably."""

    name: str
    needs: ClassVar[tuple[Need, ...]] = ()
    of_target: ClassVar[bool] = True
    """Whether the term is one of the target's outputs."""

    @abstractmethod
    def __call__(self, seen: Observation) -> Tensor:
        """Return the loss of a batch."""


class Entropy(Term):
    """Mean entropy of the target's predictions, in [0, log K]; low if all predictions are confident.

    Li et al. 2025.
    """

    name = "entropy"

    def __call__(self, seen: Observation) -> Tensor:
        return entropy(seen.logits).mean()


class Balance(Term):
    """Minus the entropy of the mean prediction, in [-log K, 0]; low if images spread over the classes.

    With :class:`Entropy` it is minus the mutual information of image and prediction (Krause et al.
    2010, "Discriminative clustering by regularized information maximization", eq. 3).
    """

    name = "balance"

    def __call__(self, seen: Observation) -> Tensor:
        return -entropy_of(seen.logits.softmax(1).mean(0))


class Statistics(Term):
    """Distance, >= 0, of the batch's statistics from the target's running statistics.

    Kullback-Leibler divergence of normal distributions, KL(batch || training), mean over channels
    and layers. The running statistics of batch normalisation summarise all private images. Yin et al.
    2020 ("Dreaming to distill", DeepInversion, eq. 4) regularise single images by them; here they
    guide the prior.
    """

    name = "statistics"
    needs = ("layers",)

    def __call__(self, seen: Observation) -> Tensor:
        return torch.stack([_divergence(layer) for layer in seen.layers]).mean()


class Spread(Term):
    """Mean similarity of images that the target predicts to be of one class, in [-1, 1].

    Similarity is the cosine between outputs of the target's last convolution, less the mean of the
    batch. Pairs are weighted by the probability that both images are of one class; no gradient flows
    through the weights. Mode seeking (Mao et al. 2019, "Mode seeking generative adversarial networks")
    pushes images of different latents apart; here only images of one class, because reconstructions
    collapse within classes.
    """

    name = "spread"
    needs = ("maps",)

    def __call__(self, seen: Observation) -> Tensor:
        outputs = seen.maps[-1].flatten(1)
        outputs = outputs - outputs.mean(0, keepdim=True).detach()
        outputs = outputs / outputs.norm(dim=1, keepdim=True).clamp_min(1e-8)
        probabilities = seen.logits.detach().softmax(1)
        together = (probabilities @ probabilities.T).fill_diagonal_(0.0)
        alike: Tensor = (together * (outputs @ outputs.T)).sum()
        return alike / together.sum().clamp_min(1e-6)


class Margin(Term):
    """Mean max-margin loss of the classes that images were generated for, in (-inf, inf).

    Yuan et al. 2023 (PLG-MI), eq. 5: low if the target predicts these classes with a wide margin.
    """

    name = "margin"

    def __call__(self, seen: Observation) -> Tensor:
        if seen.classes is None:
            raise ValueError("this term needs the classes that images were generated for")
        return max_margin(seen.logits, seen.classes).mean()


class CriticEntropy(Term):
    """Mean entropy of the discriminator's class predictions, in [0, log K].

    Chen et al. 2021 (KED-MI), the term with the weight lambda_h.
    """

    name = "critic_entropy"
    needs = ("critic",)
    of_target = False

    def __call__(self, seen: Observation) -> Tensor:
        if seen.critic is None:
            raise ValueError("this term needs a discriminator with class logits")
        return entropy(seen.critic).mean()


TERMS: dict[str, Term] = {
    term.name: term
    for term in (Entropy(), Balance(), Statistics(), Spread(), Margin(), CriticEntropy())
}
"""Terms by name, as in ``Arm.terms``."""


def entropy_of(probabilities: Tensor) -> Tensor:
    """Return the entropy in nats, in [0, log K], of probabilities (K,)."""
    return -(probabilities * probabilities.clamp_min(1e-12).log()).sum()


def _divergence(layer: BatchNormInput) -> Tensor:
    dims = [0, *range(2, layer.values.dim())]
    mean = layer.values.mean(dims)
    variance = layer.values.var(dims, unbiased=False) + 1e-5
    reference = layer.variance + 1e-5
    ratio = variance / reference
    off = (mean - layer.mean).square() / reference
    return 0.5 * (ratio - 1.0 - ratio.log() + off).mean()
