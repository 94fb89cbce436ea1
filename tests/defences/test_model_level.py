"""Defences that change the training of the whole model, apart from differential privacy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from inversight.core.config import from_mapping
from inversight.core.errors import ConfigError, InputError
from inversight.core.seeding import generator
from inversight.defences import MID, TLDMI, BiDO, NegativeLabelSmoothing, RoLSS
from inversight.defences.bido import RIDGE, dependency, kernel_operator
from inversight.defences.mid import normal_divergence
from inversight.defences.negative_label_smoothing import smoothed_loss
from inversight.defences.tl_dmi import layers_below_logits
from inversight.embeddings.network import PooledEmbedding, StageEmbedding
from inversight.models.networks import Classifier
from inversight.models.training import Batch, recipe_loss, rotation_task, train_classifier
from tests.defences.problem import (
    LONGER,
    QUICK,
    SHORT,
    defend,
    images,
    network,
    training_data,
    undefended,
    weights,
)

# BiDO


def slow_dependency(x: Tensor, y: Tensor, bandwidth: float) -> float:
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
    assert float(found) == pytest.approx(slow_dependency(x, y, bandwidth), rel=1e-6)
    single = dependency(
        kernel_operator(x.float(), bandwidth), kernel_operator(y.float(), bandwidth)
    )
    assert float(single) == pytest.approx(slow_dependency(x, y, bandwidth), rel=0.02)


def test_dependency_is_0_for_a_constant_and_bounded() -> None:
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
    found = float(BiDO().loss(QUICK, module, Batch(x, data.labels, 0.0, generator(0))))
    maps = module.stage_maps(x)
    assert len(maps) == 2
    expected = float(recipe_loss(module(x), data.labels, QUICK))
    for z in maps:
        expected += 0.05 * slow_dependency(x.flatten(1), z.flatten(1), 5.0)
        expected -= 0.5 * slow_dependency(z.flatten(1), F.one_hot(data.labels, 3), 5.0)
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


# MID


def test_divergence_in_closed_form() -> None:
    mean = torch.randn(4, 6, generator=generator(0))
    std = torch.rand(4, 6, generator=generator(1)) + 0.1
    expected = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(normal_divergence(mean, std), expected)
    assert float(normal_divergence(torch.zeros(1, 6), torch.ones(1, 6))) == 0.0


def test_random_in_training_and_the_mean_in_use() -> None:
    module, data = network(bottleneck=5).eval(), images(1)
    x = data.floats()
    mean, std = module.distribution(module.stage_maps(x)[-1])
    assert mean.shape == std.shape == (36, 5) and bool((std > 0).all())
    assert torch.equal(module(x), module.classifier(mean))
    mid = MID(weight=0.5)
    one, same, other = (
        float(mid.loss(QUICK, module, Batch(x, data.labels, 0.0, generator(seed))).detach())
        for seed in (1, 1, 2)
    )
    assert one == same != other
    # As the deviation goes to 0 the loss is that of the mean.
    noise = torch.randn(36, 5, generator=generator(1))
    drawn = recipe_loss(module.classifier(mean + std * noise), data.labels, QUICK)
    expected = drawn + 0.5 * normal_divergence(mean, std).mean()
    torch.testing.assert_close(torch.tensor(one), expected.detach())


def test_a_larger_weight_leaves_less_information() -> None:
    given = training_data(training=LONGER)
    x = images(7).floats()
    information = []
    for weight in (0.0, 0.1):
        made = defend(MID(weight=weight), given)
        module = made.target.module
        assert isinstance(module, Classifier)
        maps = module.stage_maps((x - made.target.mean[0]) / made.target.std[0])
        information.append(float(normal_divergence(*module.distribution(maps[-1])).mean()))
    assert information[1] < 0.5 * information[0]


def test_networks_with_a_bottleneck_can_be_embedded() -> None:
    made = defend(MID(code=3))
    assert made.facts["code"] == 3 and defend(MID()).facts["code"] == 4
    assert made.classifier is not None
    features, logits = PooledEmbedding("evaluator", made.target).with_logits(images(1).floats())
    assert features.shape == (36, 3)
    assert isinstance(made.target.module, Classifier)
    torch.testing.assert_close(made.target.module.classifier(features), logits)
    (block,) = StageEmbedding("public", made.classifier)(images(1).floats())
    assert block.shape[0] == 36


# Negative label smoothing

LOGITS = torch.randn(6, 4, generator=generator(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("alpha", [-1.0, -0.05, 0.0, 0.3])
def test_loss_by_its_definition(alpha: float) -> None:
    labels = (1 - alpha) * F.one_hot(LABELS, 4) + alpha / 4
    expected = -(labels * LOGITS.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(smoothed_loss(LOGITS, LABELS, alpha), expected)
    if alpha >= 0:
        torch.testing.assert_close(
            smoothed_loss(LOGITS, LABELS, alpha),
            F.cross_entropy(LOGITS, LABELS, label_smoothing=alpha),
        )


def test_smoothing_follows_its_schedule() -> None:
    defence = NegativeLabelSmoothing(alpha=-0.4)
    found = [defence.smoothing(done) for done in (0.0, 0.25, 0.5, 0.74999, 0.75, 0.99)]
    assert found == pytest.approx([0.0, 0.0, -0.2, -0.4, -0.4, -0.4], abs=1e-4)
    assert NegativeLabelSmoothing(alpha=-0.4, hard_until=0, full_from=0).smoothing(0.0) == -0.4


def test_networks_become_more_confident() -> None:
    given = training_data(training=LONGER)
    x, spread = images(7).floats(), []
    for alpha in (0.0, -0.5):
        logits = defend(NegativeLabelSmoothing(alpha=alpha), given).target(x)
        spread.append(float((logits.amax(1) - logits.amin(1)).mean()))
    assert spread[1] > 1.2 * spread[0]


def test_smoothing_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="alpha"):
        from_mapping(NegativeLabelSmoothing, {"alpha": 0.1})
    with pytest.raises(InputError, match="hard_until <= full_from"):
        defend(NegativeLabelSmoothing(hard_until=0.9, full_from=0.1))


# TL-DMI


@pytest.mark.parametrize("architecture", ["resnet", "vgg"])
def test_frozen_layers_are_those_of_the_pretraining(architecture: str) -> None:
    given = training_data(size=16, training=replace(SHORT, architecture=architecture))
    public = train_classifier(
        rotation_task(given.public),
        training=replace(given.training, most_steps=2000),
        image_shape=given.image_shape,
        rng=generator(3),
    ).classifier
    made = defend(TLDMI(freeze=0.5), given)
    layers = layers_below_logits(public.module)
    frozen = layers[: len(layers) // 2]
    assert made.facts["frozen_layers"] == len(frozen) > 2
    before, after = public.module.state_dict(), weights(made)
    for name in before:
        layer = name.rpartition(".")[0]
        if layer in frozen:
            assert torch.equal(before[name], after[name]), name
        elif name.endswith("weight"):
            assert not torch.equal(before[name], after[name]), name
    assert made.target.mean == public.mean and made.target.std == public.std


def test_layers_go_from_the_input_on() -> None:
    module = defend(TLDMI(), training_data(training=SHORT)).target.module
    assert isinstance(module, Classifier)
    layers = layers_below_logits(module)
    assert layers[0] == "stem" and layers[-1] == "norm" and "classifier" not in layers


def test_private_images_do_not_reach_frozen_layers() -> None:
    given = training_data(training=SHORT)
    other = replace(given, private=replace(images(9), ids=given.private.ids))
    one, two = (weights(defend(TLDMI(freeze=1.0), m)) for m in (given, other))
    differing = {name for name in one if not torch.equal(one[name], two[name])}
    assert differing == {"classifier.weight", "classifier.bias"}


def test_tl_dmi_needs_public_images() -> None:
    given = training_data()
    nothing = given.public.select(torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match="needs public images"):
        defend(TLDMI(), replace(given, public=nothing))


# RoLSS


def test_only_the_last_stage_loses_its_skip_connection() -> None:
    module = defend(RoLSS(), training_data(size=16)).target.module
    shortcuts = [name for name in module.state_dict() if "shortcut" in name]
    assert shortcuts == ["stages.0.shortcut.weight"]
    assert isinstance(module, Classifier)
    block = module.stages[1]
    x = torch.randn(2, 8, 8, 8, generator=generator(0))
    long_way = block.conv2(F.relu(block.norm2(block.conv1(F.relu(block.norm1(x))))))
    assert torch.equal(block(x), long_way)


def test_all_stages_can_lose_their_skip_connections() -> None:
    module = defend(RoLSS(stages=2), training_data(size=16)).target.module
    assert not [name for name in module.state_dict() if "shortcut" in name]


def test_networks_that_it_does_not_fit() -> None:
    with pytest.raises(InputError, match="a vgg has no skip connections"):
        defend(RoLSS(), training_data(training=replace(QUICK, architecture="vgg")))
    with pytest.raises(InputError, match="up to the network's 1, found 2"):
        defend(RoLSS(stages=2))
