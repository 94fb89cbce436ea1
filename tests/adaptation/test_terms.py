"""The terms of the adaptation against closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from inversight.adaptation.terms import Balance, Entropy, Observation, Spread, Statistics, observe
from inversight.models.target import Target
from tests.draws import rng


def test_entropy_and_balance_of_certain_and_uncertain_predictions() -> None:
    certain = Observation(torch.tensor([[50.0, 0.0], [0.0, 50.0]]))
    assert float(Entropy()(certain)) == pytest.approx(0.0, abs=1e-6)
    assert float(Balance()(certain)) == pytest.approx(-math.log(2), rel=1e-6)
    uncertain = Observation(torch.zeros(3, 4))
    assert float(Entropy()(uncertain)) == pytest.approx(math.log(4), rel=1e-6)
    one_sided = Observation(torch.tensor([[50.0, 0.0], [50.0, 0.0]]))
    assert float(Balance()(one_sided)) == pytest.approx(0.0, abs=1e-6)


def spread_by_hand(maps: torch.Tensor, logits: torch.Tensor) -> float:
    """Pair by pair."""
    outputs = maps.flatten(1).double() - maps.flatten(1).double().mean(0)
    p = logits.double().softmax(1)
    above, below = 0.0, 0.0
    for i, j in itertools.permutations(range(len(maps)), 2):
        together = float(p[i] @ p[j])
        cosine = float(torch.cosine_similarity(outputs[i], outputs[j], dim=0))
        above, below = above + together * cosine, below + together
    return above / below


def test_spread_is_the_similarity_within_classes() -> None:
    maps, logits = torch.randn(7, 3, 4, 4, generator=rng(0)), torch.randn(7, 5, generator=rng(1))
    first = torch.randn(7, 2, 8, 8, generator=rng(2))  # not the last convolution's
    found = Spread()(Observation(logits, maps=(first, maps)))
    assert float(found) == pytest.approx(spread_by_hand(maps, logits), rel=1e-5)


def test_spread_compares_images_of_one_class() -> None:
    """Two pairs of equal images at opposite ends: similarity 1 within a pair, -1 between pairs."""
    ends = torch.tensor([1.0, 1.0, -1.0, -1.0]).view(4, 1, 1, 1).expand(4, 2, 3, 3)
    within = torch.tensor([[50.0, 0.0], [50.0, 0.0], [0.0, 50.0], [0.0, 50.0]])
    assert float(Spread()(Observation(within, maps=(ends,)))) == pytest.approx(1.0)
    across = torch.tensor([[50.0, 0.0], [0.0, 50.0], [50.0, 0.0], [0.0, 50.0]])
    assert float(Spread()(Observation(across, maps=(ends,)))) == pytest.approx(-1.0)


@pytest.mark.parametrize("images", [1, 3])
def test_spread_of_equal_images_has_no_gradient(images: int) -> None:
    maps = torch.ones(images, 2, 3, 3, requires_grad=True)
    found = Spread()(Observation(torch.zeros(images, 2), maps=(maps,)))
    (gradient,) = torch.autograd.grad(found, maps)
    assert float(found.detach()) == 0.0 and not gradient.any()


def normalised(module: nn.Module) -> Target:
    return Target(module.eval(), ("a", "b"), (1, 8, 8), (0.0,), (1.0,), "test")


def test_statistics_equal_the_divergence_of_normal_distributions() -> None:
    """Against torch.distributions, on a batch normalisation that sees the image itself."""
    norm = nn.BatchNorm2d(1)
    norm.running_mean = torch.tensor([0.2])
    norm.running_var = torch.tensor([0.5])
    target = normalised(nn.Sequential(norm, nn.Flatten(), nn.Linear(64, 2)))
    images = torch.rand(6, 1, 8, 8, generator=rng(0))
    found = Statistics()(observe(target, images))
    normal = torch.distributions.Normal
    here = normal(images.mean(), (images.var(unbiased=False) + 1e-5).sqrt())
    there = normal(torch.tensor(0.2), torch.tensor(0.5 + 1e-5).sqrt())
    expected = torch.distributions.kl_divergence(here, there)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_statistics_are_0_for_the_training_images() -> None:
    norm = nn.BatchNorm2d(4, momentum=None)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5, generator=rng(3))
    images = torch.rand(512, 1, 8, 8, generator=rng(1))
    module.train()(images)
    same = Statistics()(observe(normalised(module), images))
    other = Statistics()(observe(normalised(module), images * 0.5))
    assert float(same.detach()) == pytest.approx(0.0, abs=1e-5)
    assert float(other.detach()) > 0.1


def test_observe_records_what_is_needed_and_removes_its_hooks() -> None:
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 2))
    target, images = normalised(module), torch.rand(2, 1, 8, 8, generator=rng(2))
    assert observe(target, images).layers and not observe(target, images, ()).layers
    assert not module[0]._forward_hooks
