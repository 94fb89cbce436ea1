"""The weights at the end of a training as a sum over its images, and the objective that looks for them.

At a stationary point of training with weight decay, the weights are theta = sum_i lambda_i grad m(x_i, y_i)
with lambda_i >= 0 and the margin m(x, y) = z_y - log sum_{j != y} exp z_j of the logits z: the gradient of
the cross-entropy is (p_y - 1) times that of m. Haim et al. (NeurIPS 2022) and Buzaglo et al. (NeurIPS 2023)
minimise the squared difference over images and lambda. Here the first layer is written in the span of its own
rows: once weight decay has erased the initial weights, these are sums of the training images, so all of them
lie in that span, whose dimension is their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.attacks.mlp import Mlp
from inversight.core.progress import Progress
from inversight.priors.descent import descend, ramp

_GAP = 10.0
"""Least ratio of neighbouring singular values that shows where the span of the images ends."""
_ON = 5.0
"""An output times the sharpness from which the sigmoid is taken for 1."""
_PENALTY = 0.01
"""Weight of the penalties: pixels out of range, and a last coordinate that is not 1."""


@dataclass(frozen=True)
class Span:
    """The span of the first layer's rows, with n coordinates.

    basis: (n, D + 1), orthonormal. rows: (H, n), the first layer in these coordinates.
    """

    basis: Tensor
    rows: Tensor

    def inputs(self, coordinates: Tensor) -> Tensor:
        """Return the first layer's inputs (..., D) of coordinates (..., n)."""
        return (coordinates @ self.basis)[..., :-1]

    def signals(self, selectors: Tensor, images: Tensor) -> Tensor:
        """Return the parts (H, F) of F images in the layer, which is the sum of part times image."""
        return self.rows @ selectors.T / (selectors * images).sum(dim=1)


def span_of(mlp: Mlp, images: int | None = None) -> Span | None:
    """Return the span of the first layer's rows; None if the weights do not show one.

    Its dimension is ``images``, or where the singular values fall by the largest factor, of ten at least.
    """
    _, values, basis = torch.linalg.svd(mlp.first, full_matrices=False)
    if images is None:
        rounding = values[0] * 1e-9
        falls = values[:-1] / values[1:].clamp_min(rounding)
        falls[: len(mlp.weights[-1])] = 0.0  # fewer images than classes are not looked for
        if len(falls) == 0 or float(falls.max()) < _GAP:
            return None
        images = int(falls.argmax()) + 1
    if images >= len(values):
        return None
    return Span(basis[:images], mlp.first @ basis[:images].T)


def whole_space(mlp: Mlp) -> Span:
    """Return the whole input space as a span."""
    basis = torch.eye(mlp.first.shape[1], dtype=torch.float64)
    return Span(basis, mlp.first)


@dataclass(frozen=True)
class Objective:
    """The relative squared difference between weights and a sum over candidates, in [0, inf); 0 is best.

    sharpness: of the sigmoid that stands for the derivative of ReLU (published: 10 to 500). parts: what the sum
    should give, each layer's weights and bias, the first layer in the span; None: the network's own.
    """

    mlp: Mlp
    span: Span
    sharpness: float
    parts: tuple[tuple[Tensor, Tensor | None], ...] | None = None

    def without(self, selectors: Tensor, images: Tensor, labels: Tensor) -> Objective:
        """Return the objective of what is left of the weights once F images' parts are taken away.

        selectors: (F, n), of the images (F, n), in the coordinates of the span (:mod:`.signals`). labels: (F,).
        """
        if len(images) == 0:
            return self
        signals = self.span.signals(selectors, images)
        gradients, outputs = self.signals(images, labels)
        on = gradients[0] * (outputs[0] * self.sharpness > _ON)
        multipliers = (signals.T * on).sum(1) / on.square().sum(1)
        parts: list[tuple[Tensor, Tensor | None]] = [(self.span.rows - signals @ images, None)]
        for number in range(1, len(self.mlp.weights)):
            gradient = gradients[number] * multipliers[:, None]
            weight, bias = self.mlp.weights[number], self.mlp.biases[number]
            rest = weight - gradient.T @ outputs[number - 1].relu()
            parts.append((rest, None if bias is None else bias - gradient.sum(0)))
        return replace(self, parts=tuple(parts))

    def signals(self, coordinates: Tensor, labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the gradients (R, M, H_l) of margins at each layer's output, and these outputs.

        coordinates: (R, M, n) of M candidates in R restarts. labels: (M,).
        """
        outputs = [coordinates @ self.span.rows.T]
        for weight, bias in zip(self.mlp.weights[1:], self.mlp.biases[1:], strict=True):
            value = outputs[-1].relu() @ weight.T
            outputs.append(value if bias is None else value + bias)
        own = F.one_hot(labels, outputs[-1].shape[-1]).to(coordinates)
        gradient = own - outputs[-1].masked_fill(own.bool(), -torch.inf).softmax(-1)
        gradients = [gradient]
        for weight, output in zip(self.mlp.weights[:0:-1], outputs[-2::-1], strict=True):
            gradient = (gradient @ weight) * torch.sigmoid(self.sharpness * output)
            gradients.append(gradient)
        return gradients[::-1], outputs

    def __call__(self, coordinates: Tensor, labels: Tensor, multipliers: Tensor) -> Tensor:
        """Return the objective (R,) of candidates (R, M, n), labels (M,) and multipliers (R, M).

        The squared norm of the difference is expanded, so that no gradient of a weight is formed:
        |theta|^2 - 2 sum_i lambda_i <grad m_i, theta> + sum_ij lambda_i lambda_j <grad m_i, grad m_j>.
        """
        gradients, outputs = self.signals(coordinates, labels)
        along = torch.zeros_like(multipliers)
        products = coordinates.new_zeros(*multipliers.shape, multipliers.shape[-1])
        norm = coordinates.new_zeros(())
        parts = self.parts
        if parts is None:  # the first layer's bias is one of its coordinates
            upper = zip(self.mlp.weights[1:], self.mlp.biases[1:], strict=True)
            parts = ((self.span.rows, None), *upper)
        for number, (gradient, (weight, bias)) in enumerate(zip(gradients, parts, strict=True)):
            inputs = outputs[number - 1].relu() if number else coordinates
            gram = inputs @ inputs.mT
            along = along + ((gradient @ weight) * inputs).sum(-1)
            if bias is not None:
                gram = gram + 1.0
                norm = norm + bias.square().sum()
                along = along + gradient @ bias
            norm = norm + weight.square().sum()
            products = products + (gradient @ gradient.mT) * gram
        both = torch.einsum("rm,rmk,rk->r", multipliers, products, multipliers)
        return (norm - 2.0 * (multipliers * along).sum(-1) + both) / norm


def stationarity_residual(mlp: Mlp, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return how far the weights are from a stationary point, in [0, inf), and the weight decay.

    The residual is |g + decay theta| / |decay theta| with the gradient g of the mean cross-entropy and the
    decay that makes it least, -<g, theta> / <theta, theta>. At the end of a training on these images alone with
    weight decay on all parameters it is 0, but for images on the kinks of ReLU, where any derivative between 0
    and 1 may hold. It is infinite if the decay is not positive.

    images: (N, C, H, W) in [0, 1], or (N, D) features for a head. labels: (N,), the network's outputs.
    """
    theta = [one.detach().clone().requires_grad_(True) for one in mlp.parameters]
    layers = len(mlp.weights)
    biases = iter(theta[layers:])
    copy = replace(
        mlp, weights=tuple(theta[:layers]),
        biases=tuple(None if one is None else next(biases) for one in mlp.biases),
    )  # fmt: skip
    loss = F.cross_entropy(copy.answers(images.double().flatten(1)), labels)
    slopes = torch.cat([one.flatten() for one in torch.autograd.grad(loss, theta)])
    values = torch.cat([one.detach().flatten() for one in theta])
    decay = -float(slopes @ values) / float(values @ values)
    if decay <= 0.0:
        return math.inf, decay
    return float((slopes + decay * values).norm() / (decay * values).norm()), decay


def candidates(
    objective: Objective, labels: Tensor, start: Tensor, *, steps: int, learning_rate: float,
    variation: float, shape: tuple[int, int, int], progress: Progress,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Minimise the objective from ``start`` (R, M, n); return coordinates (R, M, n) and multipliers (R, M).

    labels: (M,). variation: weight of the images' mean total variation. shape: of an image, (C, H, W).
    """
    mlp, span = objective.mlp, objective.span
    logarithms = torch.full(start.shape[:2], 0.05, dtype=torch.float64).log()
    done = 0

    def losses(variables: Sequence[Tensor]) -> list[Tensor]:
        nonlocal done
        coordinates, logs = variables
        pixels = (span.inputs(coordinates) - mlp.shift) / mlp.scale
        loss = (coordinates @ span.basis[:, -1] - 1.0).square().mean((-1,))
        if not mlp.of_features:  # whose range is not known
            outside = F.relu(pixels - 1.0) + F.relu(-pixels)
            loss = loss + (outside * mlp.scale.abs()).square().mean((-1, -2))
        loss = objective(coordinates, labels, logs.exp()) + _PENALTY * loss
        if variation > 0:
            images = pixels.unflatten(-1, shape)
            steps_ = (
                images.diff(dim=-1).abs().mean((1, 2, 3, 4)),
                images.diff(dim=-2).abs().mean((1, 2, 3, 4)),
            )
            loss = loss + variation * (steps_[0] + steps_[1])
        done += 1
        progress(done, steps, "candidates fitted to the weights")
        return [loss]

    adam = partial(torch.optim.Adam, lr=learning_rate)
    coordinates, logs = descend([start, logarithms], losses, optimiser=adam, steps=steps, rate=ramp)
    return coordinates, logs.exp()
