"""The span of a first layer, the objective of candidates, and how stationary weights are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.attacks.mlp import read_mlp
from inversight.attacks.stationarity import (
    Objective,
    span_of,
    stationarity_residual,
    whole_space,
)
from inversight.core.seeding import generator
from tests.attacks.perceptrons import (
    CLASSES,
    DECAY,
    PIXELS,
    SHAPE,
    network,
    sum_of,
    target_of,
    trained,
)

SHARPNESS = 30.0


class SmoothedRelu(torch.autograd.Function):
    """ReLU whose derivative is a sigmoid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return gradient * torch.sigmoid(SHARPNESS * x)


def by_autograd(module: nn.Sequential, inputs: Tensor, labels: Tensor, shares: Tensor) -> float:
    """Return |theta - sum_i lambda_i grad m_i|^2 / |theta|^2 with the gradient of each weight."""
    linear = [m for m in module if isinstance(m, nn.Linear)]
    values = inputs
    for number, layer in enumerate(linear):
        values = layer(SmoothedRelu.apply(values) if number else values)  # type: ignore[no-untyped-call]
    own = values.gather(1, labels[:, None]).squeeze(1)
    rest = values.masked_fill(F.one_hot(labels, values.shape[1]).bool(), -torch.inf)
    margins = own - rest.logsumexp(1)
    parameters = list(module.parameters())
    slopes = torch.autograd.grad((shares * margins).sum(), parameters)
    gap = sum(
        float((p - g).square().sum().detach()) for p, g in zip(parameters, slopes, strict=True)
    )
    return gap / sum(float(p.square().sum().detach()) for p in parameters)


@pytest.mark.parametrize("sizes", [(PIXELS, 7, 3), (PIXELS, 7, 6, 4)])
def test_the_objective_equals_the_difference_of_weights_by_autograd(sizes: tuple[int, ...]) -> None:
    module, rng = network(sizes), generator(5)
    mlp = read_mlp(target_of(module, classes=sizes[-1]))
    objective = Objective(mlp, whole_space(mlp), SHARPNESS)
    labels = torch.arange(6) % sizes[-1]
    inputs = torch.randn(2, 6, PIXELS, generator=rng, dtype=torch.float64)
    shares = torch.rand(2, 6, generator=rng, dtype=torch.float64)
    coordinates = torch.cat([inputs, torch.ones(2, 6, 1, dtype=torch.float64)], dim=2)
    found = objective(coordinates, labels, shares)
    for restart in range(2):
        known = by_autograd(module, inputs[restart], labels, shares[restart])
        assert float(found[restart]) == pytest.approx(known)


def test_the_objective_is_zero_at_the_training_images_of_stationary_weights() -> None:
    given = trained()
    mlp = read_mlp(given.target)
    span = span_of(mlp)
    assert span is not None
    residual, decay = stationarity_residual(mlp, given.images, given.labels)

    def value(images: Tensor) -> float:
        pixels = images.flatten(1)
        inputs = mlp.scale * pixels + mlp.shift
        coordinates = (
            torch.cat([inputs, torch.ones(6, 1, dtype=torch.float64)], dim=1) @ span.basis.T
        )
        sure = mlp.answers(pixels).softmax(1).gather(1, given.labels[:, None]).squeeze(1)
        shares = (1.0 - sure) / (6 * decay)
        # At a kink training holds a derivative between 0 and 1, and this takes about a half.
        objective = Objective(mlp, span, 1e3)
        return float(objective(coordinates[None], given.labels, shares[None]))

    assert residual < 0.3 and decay == pytest.approx(DECAY, rel=0.02)
    assert value(given.images) < 0.05 < 0.3 < value(given.others)


def test_without_its_images_little_is_left_of_stationary_weights() -> None:
    given = trained()
    mlp = read_mlp(given.target)
    span = span_of(mlp)
    assert span is not None
    inputs = mlp.scale * given.images.flatten(1) + mlp.shift
    images = torch.cat([inputs, torch.ones(6, 1, dtype=torch.float64)], dim=1) @ span.basis.T
    selectors = torch.linalg.inv(images).T
    objective = Objective(mlp, span, 1e3)
    assert objective.without(selectors[:0], images[:0], given.labels[:0]) is objective
    first, second = (objective.without(selectors, images, given.labels).parts or ())[:2]
    assert float(first[0].norm()) < 1e-9 * float(span.rows.norm())
    assert float(second[0].norm()) < 0.2 * float(mlp.weights[1].norm())
    (left, _), (other, _) = (
        objective.without(selectors[1:], images[1:], given.labels[1:]).parts or ()
    )
    torch.testing.assert_close(left, torch.outer(span.rows @ selectors[0], images[0]))
    hidden = (span.rows @ images[0]).relu()
    assert float((other @ hidden).abs().argmax()) == int(given.labels[0])


def test_the_residual_equals_that_of_a_training_step() -> None:
    """By PyTorch's gradients of the network itself; without weight decay in the weights it is large."""
    module = network((PIXELS, 7, CLASSES))
    images = torch.rand(5, *SHAPE, generator=generator(2), dtype=torch.float64)
    labels = torch.arange(5) % CLASSES
    F.cross_entropy(module(2.0 * images - 1.0), labels).backward()
    theta = nn.utils.parameters_to_vector(module.parameters()).detach()
    slopes = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    decay, *_ = torch.linalg.lstsq(-theta[:, None], slopes[:, None]).solution.flatten().tolist()
    residual, found = stationarity_residual(
        read_mlp(target_of(module, classes=CLASSES)), images, labels
    )
    assert found == pytest.approx(decay)
    if decay > 0:
        known = float((slopes + decay * theta).norm() / (decay * theta).norm())
        assert residual == pytest.approx(known) and residual > 0.5
    else:
        assert residual == torch.inf


def test_the_span_is_that_of_the_images() -> None:
    given = sum_of(images=7)
    span = span_of(given.mlp)
    assert span is not None and span.basis.shape == (7, 21)
    torch.testing.assert_close(given.images @ span.basis.T @ span.basis, given.images)
    torch.testing.assert_close(span.rows @ span.basis, given.mlp.first)
    torch.testing.assert_close(span.inputs(given.images @ span.basis.T), given.images[:, :-1])
    fewer = span_of(given.mlp, images=5)
    assert fewer is not None and len(fewer.basis) == 5


def test_initial_weights_hide_the_span() -> None:
    given = sum_of(images=7)
    weight, second = given.mlp.weights
    noise = torch.randn(weight.shape, generator=generator(0), dtype=torch.float64)
    assert span_of(replace(given.mlp, weights=(weight + noise, second))) is None
    assert span_of(given.mlp, images=21) is None  # as many as there are dimensions
