"""A target's layers, if it is a multilayer perceptron: what can be read from the weights alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from inversight.core.errors import InputError
from inversight.core.seeding import generator
from inversight.models.backbone import layers_after
from inversight.models.target import Target

_HIDDEN = (nn.Linear, nn.ReLU, nn.Dropout, nn.Identity)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ROUNDING = 1e-3
_OUTSIDE = 0.02
"""How far a value may be outside [0, 1] for a pixel."""
_NOT_IN_TURN = "its linear layers are not called one after the other with ReLU in between"


@dataclass(frozen=True)
class Mlp:
    """Linear layers with ReLU in between: logits = W_L relu(... relu(W_1 (scale x + shift) + b_1)) + b_L.

    weights: of each layer, (out, in) float64. biases: (out,), None where a layer has none. scale and
    shift: (D,), of the D pixels in [0, 1] before the first layer. of_features: the layers are the head of a
    frozen backbone, x its D features instead of pixels, with scale 1 and shift 0.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    scale: Tensor
    shift: Tensor
    of_features: bool = False

    @property
    def parameters(self) -> list[Tensor]:
        """The weights, then the biases that there are."""
        return [*self.weights, *(one for one in self.biases if one is not None)]

    @property
    def first(self) -> Tensor:
        """The first layer (out, D + 1): its weight, and its bias, or zeros, as the last column."""
        weight, bias = self.weights[0], self.biases[0]
        column = weight.new_zeros(len(weight)) if bias is None else bias
        return torch.cat([weight, column[:, None]], dim=1)

    def answers(self, pixels: Tensor) -> Tensor:
        """Return the logits (N, K) of pixels (N, D) in [0, 1], or of features (N, D)."""
        values = self.scale * pixels + self.shift
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = (values.relu() if number else values) @ weight.T
            values = values if bias is None else values + bias
        return values

    def pixels(self, inputs: Tensor) -> Tensor:
        """Return the pixels (..., D) in [0, 1] of inputs (..., D) of the first layer, if it takes pixels."""
        return ((inputs - self.shift) / self.scale).clamp(0.0, 1.0)

    def are_pixels(self, inputs: Tensor) -> bool:
        """Return whether inputs (..., D) are those of pixels in [0, 1], or of features, which may be any."""
        values = (inputs - self.shift) / self.scale
        outside = torch.maximum(values - 1.0, -values).amax()
        return self.of_features or bool(outside <= _OUTSIDE)


@torch.no_grad()
def read_mlp(target: Target) -> Mlp:
    """Return the layers of ``target``, a multilayer perceptron on pixels or the head of a frozen backbone.

    On pixels, what comes before the first linear layer may scale and shift each of them. The head is what
    comes after ``target.frozen_until``; what comes before its first linear layer may be anything. No counted
    query is sent.

    Raises:
        InputError: it is another network; says what is in the way.
    """
    if any(isinstance(m, torch.jit.ScriptModule) for m in target.module.modules()):
        raise _other(target, "it is a compiled program; give it as package.module:factory")
    layers = layers_after(target.module, target.frozen_until)
    head = target.frozen_until is not None
    for one in layers:
        if isinstance(one, _CONVOLUTIONS):
            raise _other(target, f"it has {type(one).__name__} layers")
    linear = [m for m in layers if isinstance(m, nn.Linear)]
    if not linear:
        raise _other(target, "it has no linear layer")
    for one in layers[layers.index(linear[0]) :]:
        if not isinstance(one, _HIDDEN):
            raise _other(target, f"it has {type(one).__name__} after its first linear layer")
    if len(linear) < 2:
        raise _other(target, "it has a single layer, which holds no more than sums over a class")
    size = linear[0].in_features
    if not head and size != math.prod(target.image_shape):
        size = math.prod(target.image_shape)
        raise _other(target, f"its first linear layer does not take the {size} pixels")
    parts = [(m.in_features, m.out_features) for m in linear]
    if any(one[1] != other[0] for one, other in pairwise(parts)):
        raise _other(target, _NOT_IN_TURN)
    rng = generator(0, "mlp")
    trial = torch.rand(6, size, generator=rng, dtype=linear[0].weight.dtype)
    trial[0], trial[1] = 0.0, 1.0
    inputs, logits = _trial(target, linear[0], trial, head=head)
    scale, shift = inputs[1] - inputs[0], inputs[0]
    found = Mlp(
        tuple(m.weight.detach().cpu().double() for m in linear),
        tuple(None if m.bias is None else m.bias.detach().cpu().double() for m in linear),
        scale, shift, head,
    )  # fmt: skip
    if not _near(scale * trial.double() + shift, inputs) or bool((scale == 0).any()):
        raise _other(target, "what comes before its first linear layer mixes pixels")
    if not _near(found.answers(trial.double()), logits):
        raise _other(target, _NOT_IN_TURN)
    return found


def _trial(target: Target, first: nn.Linear, trial: Tensor, *, head: bool) -> tuple[Tensor, Tensor]:
    """Return what the first layer gets of ``trial`` (N, D), and the logits, both float64.

    Pixels go through the whole network. Features take the place of the first layer's own input.
    """
    seen: list[Tensor] = []

    def hook(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        if not head:
            seen.append(given[0].detach())
            return None
        if given[0].shape != trial.shape:
            raise _other(target, f"the first linear layer after {target.frozen_until} gets maps")
        seen.append(trial.to(given[0]))
        return (seen[0],)

    shape = target.image_shape
    images = trial.new_zeros(len(trial), *shape) if head else trial.unflatten(1, shape)
    handle = first.register_forward_pre_hook(hook)
    try:
        logits = replace(target, before=None)(images.to(target.device)).cpu().double()
    finally:
        handle.remove()
    return seen[0].cpu().double().flatten(1), logits


def _near(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= _ROUNDING * other.abs().max().clamp_min(1e-12))


def _other(target: Target, why: str) -> InputError:
    if target.frozen_until is not None:
        return InputError(
            f"WeightReconstruction needs a head of Linear and ReLU layers behind --frozen-until "
            f"{target.frozen_until}: of {target.spec}, {why}; name another layer, or choose another --attack"
        )
    numbers = sum(one.numel() for one in target.module.parameters())
    images = numbers // math.prod(target.image_shape)
    return InputError(
        "WeightReconstruction needs a multilayer perceptron on pixels (Linear and ReLU) with more parameters "
        f"than training images x pixels: of {target.spec}, {why} (its {numbers:,} parameters are the pixels "
        f"of {images:,} images); choose another --attack"
    )
