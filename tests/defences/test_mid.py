"""The bottleneck: its divergence, its randomness, what it takes away."""

from __future__ import annotations

import torch
from torch.distributions import Normal, kl_divergence

from inversight.core.seeding import generator
from inversight.defences import MID
from inversight.defences.mid import InformationLoss, normal_divergence
from inversight.embeddings.network import PooledEmbedding, StageEmbedding
from inversight.models.networks import Classifier
from inversight.models.training import Batch, recipe_loss
from tests.defences.problem import LONGER, QUICK, defend, images, network, training_data


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
    loss = InformationLoss(QUICK, weight=0.5)
    one, same, other = (
        float(loss(module, Batch(x, data.labels, 0.0, generator(seed))).detach())
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


def test_embeddings_of_such_a_network() -> None:
    made = defend(MID(code=3))
    assert made.facts["code"] == 3 and defend(MID()).facts["code"] == 4
    assert made.classifier is not None
    features, logits = PooledEmbedding("evaluator", made.target).with_logits(images(1).floats())
    assert features.shape == (36, 3)
    assert isinstance(made.target.module, Classifier)
    torch.testing.assert_close(made.target.module.classifier(features), logits)
    (block,) = StageEmbedding("public", made.classifier)(images(1).floats())
    assert block.shape[0] == 36
