"""Gradients of the guidance: direction, length on the generator's parameters, state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inversight.adaptation.guidance import Guidance, WeightedTerm
from inversight.adaptation.terms import Balance, Entropy, Term
from inversight.models.target import Target
from inversight.priors.guidance import GeneratedBatch
from tests.draws import rng, uniform

SHAPE = (1, 4, 4)


@pytest.fixture
def target() -> Target:
    linear = nn.Linear(16, 3)
    linear.weight.data = torch.randn(3, 16, generator=rng(0))
    module = nn.Sequential(nn.Flatten(), linear).requires_grad_(False)
    return Target(module, ("a", "b", "c"), SHAPE, (0.0,), (1.0,), "test")


IMAGES = uniform(4, *SHAPE, seed=1)


def guidance(target: Target, *terms: Term, **options: Any) -> Guidance:
    return Guidance(target, [WeightedTerm(term, 0.3) for term in terms], **options)


def entropy_gradient(target: Target) -> Tensor:
    """Gradient of the mean entropy over IMAGES, by finite differences in float64."""
    weight, bias = (p.double() for p in target.module[1].parameters())

    def value(z: Tensor) -> float:
        p = (z.flatten(1) @ weight.T + bias).softmax(1)
        return float(-(p * p.log()).sum(1).mean())

    x = IMAGES.double()
    steps = 1e-5 * torch.eye(x.numel(), dtype=torch.float64).view(-1, *x.shape)
    return torch.tensor([(value(x + s) - value(x - s)) / 2e-5 for s in steps]).view_as(IMAGES)


def test_gradient_is_that_of_the_mean_entropy(target: Target) -> None:
    found = guidance(target, Entropy())(IMAGES)["entropy"]
    torch.testing.assert_close(found, entropy_gradient(target), rtol=1e-3, atol=1e-6)


def test_part_of_a_batch_is_guided_like_a_batch(target: Target) -> None:
    found = Guidance(target, [WeightedTerm(Entropy(), 0.3, part=2)])(IMAGES)["entropy"]
    alone = guidance(target, Entropy())(IMAGES[:2])["entropy"]
    torch.testing.assert_close(found[:2], alone)
    assert not found[2:].any()


def test_preconditioner_changes_the_direction_and_keeps_the_length(target: Target) -> None:
    turned = Guidance(target, [WeightedTerm(Entropy(), 0.3, lambda x, g: 1000.0 * g.flip(3))])
    plain = guidance(target, Entropy())(IMAGES)["entropy"]
    torch.testing.assert_close(turned(IMAGES)["entropy"], plain.flip(3))
    assert turned.logged["cosine"] < 1.0


def test_published_scale_sums_and_keeps_the_length_of_the_preconditioner(target: Target) -> None:
    guide = Guidance(target, [WeightedTerm(Entropy(), 2.0, lambda x, g: 7.0 * g)], summed=8)
    found = guide(IMAGES)["entropy"]
    torch.testing.assert_close(found, 7.0 * entropy_gradient(target), rtol=1e-3, atol=1e-5)
    # lambda_h times the sum over a batch of 8, of which these images are a part.
    assert guide.factor("entropy") == 16.0
    assert not guide.due(0)


@pytest.mark.parametrize("augmented", [True, False])
def test_target_sees_augmented_images_if_set(target: Target, augmented: bool) -> None:
    shown = IMAGES.flip(3) if augmented else IMAGES
    batch = GeneratedBatch(None, rng(0), None, augment=lambda x: x.flip(3))
    found = guidance(target, Entropy(), augmented=augmented)(shown, batch)["entropy"]
    expected = entropy_gradient(target)
    expected = expected.flip(3) if augmented else expected
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_factors_set_lengths_on_the_parameters(target: Target) -> None:
    terms = [WeightedTerm(Entropy(), 0.3), WeightedTerm(Balance(), 0.6)]
    guide = Guidance(target, terms, memory=0.5)
    guide.measure(2.0, {"entropy": 10.0, "balance": 0.1})
    assert guide.factor("entropy") == pytest.approx(0.3 * 2.0 / 10.0)
    assert guide.factor("balance") == pytest.approx(0.6 * 2.0 / 0.1)
    # Root mean squares with weights 1/3 and 2/3.
    guide.measure(6.0, {"entropy": 10.0, "balance": 0.1})
    gan = (1 / 3 * 4 + 2 / 3 * 36) ** 0.5
    assert guide.factor("entropy") == pytest.approx(0.3 * gan / 10.0)


def test_measures_at_intervals(target: Target) -> None:
    guide = guidance(target, Entropy(), interval=4)
    assert [step for step in range(10) if guide.due(step)] == [0, 4, 8]


def test_state_can_be_restored(target: Target) -> None:
    first, second = guidance(target, Entropy()), guidance(target, Entropy())
    first.measure(1.0, {"entropy": 3.0})
    second.state.update(first.state)
    for guide in (first, second):
        guide.measure(5.0, {"entropy": 1.0})
    assert first.factor("entropy") == second.factor("entropy")


def test_logs_entropies(target: Target) -> None:
    guide = guidance(target, Entropy(), Balance())
    guide(IMAGES)
    logits = target(IMAGES)
    categorical = torch.distributions.Categorical
    entropies = categorical(logits=logits).entropy()
    assert guide.logged["entropy"] == pytest.approx(float(entropies.mean()), rel=1e-5)
    expected = float(categorical(probs=logits.softmax(1).mean(0)).entropy())
    assert guide.logged["class_entropy"] == pytest.approx(expected, rel=1e-4)
    assert guide.logged["balance"] == pytest.approx(-expected, rel=1e-4)


def test_saturated_target_gives_no_gradient(target: Target) -> None:
    target.module[1].weight.data.zero_()
    target.module[1].bias.data = torch.tensor([1e4, 0.0, 0.0])
    guide = guidance(target, Entropy())
    gradient = guide(IMAGES)["entropy"]
    guide.measure(1.0, {"entropy": 0.0})
    assert not gradient.any() and not (guide.factor("entropy") * gradient).any()
