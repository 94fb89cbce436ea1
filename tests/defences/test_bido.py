"""Dependencies against a slow reference, and in which direction training moves them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.core.seeding import generator
from inversight.defences import BiDO
from inversight.defences.bido import RIDGE, DependencyLoss, dependency, kernel_operator
from inversight.models.networks import Classifier
from inversight.models.training import Batch, recipe_loss
from tests.defences.problem import LONGER, QUICK, defend, images, training_data, undefended


def slow(x: Tensor, y: Tensor, bandwidth: float) -> float:
    """Normalised HSIC by its definition: loops for the kernels, an inverse for the operators."""
    n = len(x)
    centring = np.eye(n) - np.ones((n, n)) / n
    operators = []
    for side in (x.double().numpy(), y.double().numpy()):
        kernel = np.empty((n, n))
        for i in range(n):
            for j in range(n):
                squared = sum((a - b) ** 2 for a, b in zip(side[i], side[j], strict=True))
                kernel[i, j] = math.exp(-squared / (2 * bandwidth**2 * side.shape[1]))
        g = centring @ kernel @ centring
        operators.append(g @ np.linalg.inv(g + n * RIDGE * np.eye(n)))
    return float(np.trace(operators[0] @ operators[1]))


@pytest.mark.parametrize("bandwidth", [0.5, 5.0])
def test_dependency_by_its_definition(bandwidth: float) -> None:
    x = torch.randn(9, 4, generator=generator(0), dtype=torch.float64)
    y = torch.cat([x[:, :2].square(), torch.randn(9, 1, generator=generator(1)).double()], 1)
    found = dependency(kernel_operator(x, bandwidth), kernel_operator(y, bandwidth))
    assert float(found) == pytest.approx(slow(x, y, bandwidth), rel=1e-6)
    single = dependency(
        kernel_operator(x.float(), bandwidth), kernel_operator(y.float(), bandwidth)
    )
    assert float(single) == pytest.approx(slow(x, y, bandwidth), rel=0.02)


def test_range() -> None:
    x = torch.randn(8, 4, generator=generator(0), dtype=torch.float64)
    constant = torch.ones(8, 2, dtype=torch.float64)
    one = kernel_operator(x, 5.0)
    assert float(dependency(one, kernel_operator(constant, 5.0))) == pytest.approx(0.0, abs=1e-9)
    assert 0.0 < float(dependency(one, one)) < 7.0


def test_loss_is_the_sum_over_stages() -> None:
    module = undefended(16).module
    assert isinstance(module, Classifier)
    data = images(1, per_class=4, size=16)
    x = data.floats()
    loss = DependencyLoss(QUICK, image_weight=0.05, label_weight=0.5, bandwidth=5.0)
    found = float(loss(module, Batch(x, data.labels, 0.0, generator(0))))
    maps = module.stage_maps(x)
    assert len(maps) == 2
    expected = float(recipe_loss(module(x), data.labels, QUICK))
    for z in maps:
        expected += 0.05 * slow(x.flatten(1), z.flatten(1), 5.0)
        expected -= 0.5 * slow(z.flatten(1), F.one_hot(data.labels, 3), 5.0)
    assert found == pytest.approx(expected, rel=0.05)


def test_training_lowers_what_maps_tell_of_images() -> None:
    given = training_data(training=LONGER)
    told = []
    for weight in (0.0, 1.0):
        made = defend(BiDO(image_weight=weight, label_weight=0.0), given)
        module, data = made.target.module, images(7)
        assert isinstance(module, Classifier)
        x = ((data.floats() - made.target.mean[0]) / made.target.std[0]).double()
        (z,) = module.double().stage_maps(x)
        operators = (kernel_operator(v.flatten(1), 5.0) for v in (x, z))
        told.append(float(dependency(*operators)))
    assert told[1] < 0.8 * told[0]
