"""Defences that change the training of the whole model, apart from differential privacy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from inversight.core.errors import InputError
from inversight.core.seeding import generator
from inversight.defences import MID, TLDMI, BiDO, Defence, Defended, NegativeLabelSmoothing, RoLSS
from inversight.defences.bido import RIDGE, dependency, kernel_operator
from inversight.defences.mid import normal_divergence
from inversight.defences.negative_label_smoothing import smoothed_loss
from inversight.defences.tl_dmi import layers_below_logits
from inversight.embeddings.network import PooledEmbedding, StageEmbedding
from inversight.models.training import Batch, recipe_loss, rotation_task, train_classifier
from tests.defences.problem import (
    LONGER,
    QUICK,
    SHORT,
    defend,
    images,
    maps_of,
    network,
    training_data,
    undefended,
)  # fmt: skip

# BiDO


def slow_dependency(x: Tensor, y: Tensor, bandwidth: float) -> float:
    """Normalised HSIC by its definition: explicit distances for the kernels, an inverse for the operators."""
    n = len(x)
    centring = np.eye(n) - np.ones((n, n)) / n
    operators = []
    for side in (x.double().numpy(), y.double().numpy()):
        squared = np.array([[((a - b) ** 2).sum() for b in side] for a in side])
        g = centring @ np.exp(-squared / (2 * bandwidth**2 * side.shape[1])) @ centring
        operators.append(g @ np.linalg.inv(g + n * RIDGE * np.eye(n)))
    return float(np.trace(operators[0] @ operators[1]))


@pytest.mark.parametrize("bandwidth", [0.5, 5.0])
def test_dependency_equals_its_definition(bandwidth: float) -> None:
    x = torch.randn(9, 4, generator=generator(0), dtype=torch.float64)
    y = torch.cat([x[:, :2].square(), torch.randn(9, 1, generator=generator(1)).double()], 1)
    expected = slow_dependency(x, y, bandwidth)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 0.02)):
        a, b = (kernel_operator(side.to(dtype), bandwidth) for side in (x, y))
        assert float(dependency(a, b)) == pytest.approx(expected, rel=tolerance)


def test_dependency_is_0_for_a_constant_and_bounded() -> None:
    x = torch.randn(8, 4, generator=generator(0), dtype=torch.float64)
    one, constant = kernel_operator(x, 5.0), kernel_operator(torch.ones_like(x), 5.0)
    assert float(dependency(one, constant)) == pytest.approx(0.0, abs=1e-9)
    assert 0.0 < float(dependency(one, one)) < 7.0


def test_bido_loss_sums_over_stages() -> None:
    module, data = undefended(16).module, images(1, per_class=4, size=16)
    x = data.floats()
    found = float(BiDO().loss(QUICK, module, Batch(x, data.labels, 0.0, generator(0))))
    maps = module.stage_maps(x)
    assert len(maps) == 2
    expected = float(recipe_loss(module(x), data.labels, QUICK))
    for z in maps:
        expected += 0.05 * slow_dependency(x.flatten(1), z.flatten(1), 5.0)
        expected -= 0.5 * slow_dependency(z.flatten(1), F.one_hot(data.labels, 3), 5.0)
    assert found == pytest.approx(expected, rel=0.05)


def dependency_on_images(made: Defended) -> float:
    _, x, (z,) = maps_of(made, images(7).floats())
    return float(dependency(*(kernel_operator(v.flatten(1), 5.0) for v in (x, z))))


def information(made: Defended) -> float:
    module, _, maps = maps_of(made, images(7).floats())
    return float(normal_divergence(*module.distribution(maps[-1])).mean())


def hesitation(made: Defended) -> float:
    logits = made.target(images(7).floats())
    return 1.0 / float((logits.amax(1) - logits.amin(1)).mean())


@pytest.mark.parametrize(
    ("weak", "strong", "measure", "factor"),
    [
        (BiDO(image_weight=0, label_weight=0), BiDO(image_weight=1, label_weight=0),
         dependency_on_images, 0.8),
        (MID(weight=0), MID(weight=0.1), information, 0.5),
        (NegativeLabelSmoothing(alpha=0), NegativeLabelSmoothing(alpha=-0.5), hesitation, 1 / 1.2),
    ],
)  # fmt: skip
def test_training_lowers_what_the_loss_penalises(
    weak: Defence, strong: Defence, measure: Callable[[Defended], float], factor: float
) -> None:
    given = training_data(training=LONGER)
    before, after = (measure(defend(defence, given)) for defence in (weak, strong))
    assert after < factor * before


# MID


def test_normal_divergence_equals_torch_distributions() -> None:
    mean = torch.randn(4, 6, generator=generator(0))
    std = torch.rand(4, 6, generator=generator(1)) + 0.1
    expected = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(normal_divergence(mean, std), expected)
    assert float(normal_divergence(torch.zeros(1, 6), torch.ones(1, 6))) == 0.0


def test_mid_samples_in_training_and_uses_the_mean_afterwards() -> None:
    module, data = network(bottleneck=5).eval(), images(1)
    x = data.floats()
    mean, std = module.distribution(module.stage_maps(x)[-1])
    assert mean.shape == std.shape == (36, 5) and bool((std > 0).all())
    assert torch.equal(module(x), module.classifier(mean))
    mid = MID(weight=0.5)
    one, again, other = (
        float(mid.loss(QUICK, module, Batch(x, data.labels, 0.0, generator(seed))).detach())
        for seed in (1, 1, 2)
    )
    assert one == again != other
    noise = torch.randn(36, 5, generator=generator(1))
    drawn = recipe_loss(module.classifier(mean + std * noise), data.labels, QUICK)
    expected = drawn + 0.5 * normal_divergence(mean, std).mean()
    torch.testing.assert_close(torch.tensor(one), expected.detach())


def test_networks_with_a_bottleneck_can_be_embedded() -> None:
    given = training_data(training=SHORT)
    made, x = defend(MID(code=3), given), images(1).floats()
    assert made.facts["code"] == 3 and defend(MID(), given).facts["code"] == 4
    features, logits = PooledEmbedding("evaluator", made.target).with_logits(x)
    assert features.shape == (36, 3)
    torch.testing.assert_close(made.target.module.classifier(features), logits)
    (block,) = StageEmbedding("public", made.classifier)(x)
    assert block.shape[0] == 36


# Negative label smoothing


@pytest.mark.parametrize("alpha", [-1.0, -0.05, 0.0, 0.3])
def test_smoothed_loss_equals_its_definition(alpha: float) -> None:
    logits, y = torch.randn(6, 4, generator=generator(0)), torch.tensor([0, 1, 2, 3, 0, 1])
    labels = (1 - alpha) * F.one_hot(y, 4) + alpha / 4
    expected = -(labels * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(smoothed_loss(logits, y, alpha), expected)
    if alpha >= 0:
        theirs = F.cross_entropy(logits, y, label_smoothing=alpha)
        torch.testing.assert_close(smoothed_loss(logits, y, alpha), theirs)


def test_smoothing_follows_its_schedule() -> None:
    defence = NegativeLabelSmoothing(alpha=-0.4)
    found = [defence.smoothing(done) for done in (0.0, 0.25, 0.5, 0.74999, 0.75, 0.99)]
    assert found == pytest.approx([0.0, 0.0, -0.2, -0.4, -0.4, -0.4], abs=1e-4)
    assert NegativeLabelSmoothing(alpha=-0.4, hard_until=0, full_from=0).smoothing(0.0) == -0.4


# TL-DMI


@pytest.mark.parametrize("architecture", ["resnet", "vgg"])
def test_frozen_layers_are_those_of_the_pretraining(architecture: str) -> None:
    given = training_data(16, replace(SHORT, architecture=architecture))
    public = train_classifier(
        rotation_task(given.public), training=replace(given.training, most_steps=2000),
        image_shape=given.image_shape, rng=generator(3),
    ).classifier  # fmt: skip
    made = defend(TLDMI(freeze=0.5), given)
    layers = layers_below_logits(public.module)
    assert layers[0] == "stem" and layers[-1] == "norm" and "classifier" not in layers
    frozen = layers[: len(layers) // 2]
    assert made.facts["frozen_layers"] == len(frozen) > 2
    after = made.target.module.state_dict()
    for name, before in public.module.state_dict().items():
        if (layer := name.rpartition(".")[0]) in frozen or name.endswith("weight"):
            assert torch.equal(before, after[name]) == (layer in frozen), name
    assert made.target.mean == public.mean and made.target.std == public.std


def test_private_images_do_not_reach_frozen_layers() -> None:
    given = training_data(training=SHORT)
    other = replace(given, private=replace(images(9), ids=given.private.ids))
    one, two = (defend(TLDMI(freeze=1.0), m).target.module.state_dict() for m in (given, other))
    differing = {name for name in one if not torch.equal(one[name], two[name])}
    assert differing == {"classifier.weight", "classifier.bias"}


# RoLSS


@pytest.mark.parametrize(("stages", "left"), [(1, ["stages.0.shortcut.weight"]), (2, [])])
def test_rolss_removes_the_last_skip_connections(stages: int, left: list[str]) -> None:
    module = defend(RoLSS(stages=stages), training_data(16, SHORT)).target.module
    assert [name for name in module.state_dict() if "shortcut" in name] == left
    block, x = module.stages[1], torch.randn(2, 8, 8, 8, generator=generator(0))
    long_way = block.conv2(F.relu(block.norm2(block.conv1(F.relu(block.norm1(x))))))
    assert torch.equal(block(x), long_way)


@pytest.mark.parametrize(
    ("defence", "changes", "message"),
    [
        (
            RoLSS(),
            {"training": replace(QUICK, architecture="vgg")},
            "a vgg has no skip connections",
        ),
        (RoLSS(stages=2), {}, "up to the network's 1, found 2"),
        (TLDMI(), {"public": images(1).select(torch.arange(0))}, "needs public images"),
        (NegativeLabelSmoothing(hard_until=0.9, full_from=0.1), {}, "hard_until <= full_from"),
    ],
)
def test_rejects_what_does_not_fit(defence: Defence, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        defend(defence, replace(training_data(), **changes))
