"""Adds classes to the networks of a prior that was trained without them.

Trained weights are copied and new weights are zero, so that at first neither images nor the critic's
logits depend on the class. Shahbazi et al. 2022 ("Collapse by conditioning") also start without classes,
and introduce them gradually.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from inversight.priors.architecture import Architecture
from inversight.priors.layers import FullyConnected
from inversight.priors.style_prior import StylePrior
from inversight.priors.stylegan2 import Discriminator, Generator

_Network = TypeVar("_Network", Generator, Discriminator)

MAPPING_RATE = 3.0
"""Learning-rate multiplier of a mapping that has to learn classes (without: 0.01). At 0.01 weights that
begin at zero stay there: after 300 steps on the digits, the share of a class's samples that the target
puts in it was 0.12 at 0.1, 0.19 at 1 and 0.34 at 3 (moving average; of 10 classes)."""


@torch.no_grad()
def condition_on_classes(prior: StylePrior, classes: int, *, rng: torch.Generator) -> StylePrior:
    """Return ``prior`` with both networks conditioned on ``classes``, like PLG-MI's.

    Each class has a random vector in either network. In the generator's mapping their weights are 0. The
    critic's logit is a product with the class's vector, as in Miyato and Koyama 2018: one coordinate is
    the same for all classes and carries the logit without classes, the others have weight 0.
    """
    before = prior.average.architecture
    architecture = replace(
        before, c_dim=classes, critic_classes=0, mapping_rate=MAPPING_RATE, cmap_depth=0,
        cmap_dim=max(2, before.cmap_dim or before.width_at(4)),
    )  # fmt: skip
    vectors = torch.randn(before.w_dim, classes, generator=rng)
    critic = _rebuilt(prior.critic, architecture, leave=("b4.out.",))
    _begin_projection(critic, *_one_logit(prior.critic), rng)
    old = (prior.average, prior.raw)
    average, raw = (_with_classes(one, architecture, vectors) for one in old)
    return replace(prior, average=average, raw=raw, critic=critic, cache=None)


@torch.no_grad()
def add_class_logits(prior: StylePrior, classes: int) -> StylePrior:
    """Return ``prior`` with a critic that has a logit for each class, like KED-MI's.

    At first each class logit is the critic's single logit minus log(classes), so that their log-sum-exp
    is that logit.
    """
    before = prior.critic.architecture
    if before.critic_classes == classes:
        return prior
    architecture = replace(before, critic_classes=classes)
    critic = _rebuilt(prior.critic, architecture, leave=("b4.out.",))
    weight, bias = _one_logit(prior.critic)
    critic.b4.out.weight.copy_(weight.expand(classes, -1))
    critic.b4.out.bias.copy_((bias - math.log(classes)).expand(classes))
    average, raw = (_rebuilt(old, architecture) for old in (prior.average, prior.raw))
    return replace(prior, average=average, raw=raw, critic=critic, cache=None)


def _with_classes(old: Generator, architecture: Architecture, vectors: Tensor) -> Generator:
    new = _rebuilt(old, architecture, leave=("mapping.fc",))
    for i in range(architecture.mapping_depth):
        one: FullyConnected = old.mapping.get_submodule(f"fc{i}")  # type: ignore[assignment]
        other: FullyConnected = new.mapping.get_submodule(f"fc{i}")  # type: ignore[assignment]
        # The same function at another learning rate and of more inputs, which scale weights.
        other.weight.zero_()
        other.weight[:, : one.weight.shape[1]] = one.weight * (one.scale / other.scale)
        other.bias.copy_(one.bias * (one.rate / other.rate))
    new.mapping.embed.weight.copy_(vectors)
    return new


def _begin_projection(
    critic: Discriminator, weight: Tensor, bias: Tensor, rng: torch.Generator
) -> None:
    """Put half of each class vector's squared length in the first coordinate, which carries the logit."""
    embed = critic.mapping.embed
    width, classes = embed.weight.shape
    own = torch.randn(width - 1, classes, generator=rng)
    own *= math.sqrt(width / 2.0) / own.norm(dim=0)
    embed.weight.zero_()
    embed.weight[1:] = own / embed.scale
    for parameter, first in (
        (embed.bias, math.sqrt(width / 2.0)),
        (critic.b4.out.weight, math.sqrt(2.0) * weight),
        (critic.b4.out.bias, math.sqrt(2.0) * bias),
    ):
        parameter.zero_()
        parameter[0] = first


def _one_logit(critic: Discriminator) -> tuple[Tensor, Tensor]:
    """Return weight (D,) and bias () of the critic's logit; the mean over classes if it has class logits."""
    out = critic.b4.out
    return out.weight.mean(0), out.bias.mean() + math.log(len(out.bias))


def _rebuilt(old: _Network, architecture: Architecture, leave: tuple[str, ...] = ()) -> _Network:
    """Return a network of ``architecture`` with the weights of ``old`` that it has too.

    Weights whose names begin with one of ``leave`` are not copied.
    """
    new = type(old)(architecture)
    state = {name: value for name, value in old.state_dict().items() if not name.startswith(leave)}
    new.load_state_dict(state, strict=False)
    return new.to(next(old.parameters()).device).requires_grad_(False)
