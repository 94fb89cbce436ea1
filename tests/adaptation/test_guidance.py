"""The target's pull: its direction, its length on the generator's parameters, its memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from inversight.adaptation.guidance import Guidance, WeightedTerm
from inversight.adaptation.terms import Balance, Entropy
from inversight.models.target import Target

SHAPE = (1, 4, 4)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def target() -> Target:
    linear = nn.Linear(16, 3)
    linear.weight.data = torch.randn(3, 16, generator=rng(0))
    module = nn.Sequential(nn.Flatten(), linear).requires_grad_(False)
    return Target(module, ("a", "b", "c"), SHAPE, (0.0,), (1.0,), "test")


def images(n: int = 4) -> Tensor:
    return torch.rand(n, *SHAPE, generator=rng(1))


def entropy_gradient(target: Target, x: Tensor) -> Tensor:
    """Gradient of the entropy's mean over the images, by finite differences in float64."""

    def value(z: Tensor) -> float:
        p = (
            (z.flatten(1) @ target.module[1].weight.double().T)
            .add(target.module[1].bias.double())
            .softmax(1)
        )
        return float(-(p * p.log()).sum(1).mean())

    out = torch.zeros_like(x, dtype=torch.float64)
    for index in range(x.numel()):
        step = torch.zeros(x.numel(), dtype=torch.float64)
        step[index] = 1e-5
        up, down = (value(x.double() + s * step.view_as(x)) for s in (1, -1))
        out.view(-1)[index] = (up - down) / 2e-5
    return out


def test_the_gradient_is_that_of_the_mean_entropy(target: Target) -> None:
    found = Guidance(target, [WeightedTerm(Entropy(), 0.3)])(images())["entropy"]
    torch.testing.assert_close(
        found.double(), entropy_gradient(target, images()), rtol=1e-3, atol=1e-6
    )


def test_a_part_of_the_batch_is_guided_as_if_it_were_the_batch(target: Target) -> None:
    found = Guidance(target, [WeightedTerm(Entropy(), 0.3, part=2)])(images())["entropy"]
    alone = Guidance(target, [WeightedTerm(Entropy(), 0.3)])(images()[:2])["entropy"]
    torch.testing.assert_close(found[:2], alone)
    assert torch.equal(found[2:], torch.zeros_like(found[2:]))


def test_a_preconditioner_turns_and_does_not_stretch(target: Target) -> None:
    def swap(x: Tensor, g: Tensor) -> Tensor:
        return 1000.0 * g.flip(3)

    plain = Guidance(target, [WeightedTerm(Entropy(), 0.3)])
    turned = Guidance(target, [WeightedTerm(Entropy(), 0.3, swap)])
    a, b = plain(images())["entropy"], turned(images())["entropy"]
    torch.testing.assert_close(a.flip(3), b)
    assert turned.logged["cosine"] < 1.0


def test_the_published_scale_keeps_what_the_preconditioner_gives_and_sums(target: Target) -> None:
    guide = Guidance(target, [WeightedTerm(Entropy(), 2.0, lambda x, g: 7.0 * g)], summed=8)
    found = guide(images())["entropy"]
    torch.testing.assert_close(
        found.double(), 7.0 * entropy_gradient(target, images()), rtol=1e-3, atol=1e-5
    )
    # lambda_h times the sum over a batch of 8, of which these images are a share.
    assert guide.factor("entropy") == 16.0
    assert not guide.due(0)


def test_factors_set_lengths_on_the_parameters(target: Target) -> None:
    guide = Guidance(
        target, [WeightedTerm(Entropy(), 0.3), WeightedTerm(Balance(), 0.6)], memory=0.5
    )
    guide.measure(2.0, {"entropy": 10.0, "balance": 0.1})
    assert guide.factor("entropy") == pytest.approx(0.3 * 2.0 / 10.0)
    assert guide.factor("balance") == pytest.approx(0.6 * 2.0 / 0.1)
    # Root mean squares with weights 1/3 and 2/3.
    guide.measure(6.0, {"entropy": 10.0, "balance": 0.1})
    gan = (1 / 3 * 4 + 2 / 3 * 36) ** 0.5
    assert guide.factor("entropy") == pytest.approx(0.3 * gan / 10.0)


def test_lengths_are_wanted_at_intervals(target: Target) -> None:
    guide = Guidance(target, [WeightedTerm(Entropy(), 0.3)], interval=4)
    assert [step for step in range(10) if guide.due(step)] == [0, 4, 8]


def test_the_state_goes_on_where_it_was(target: Target) -> None:
    first = Guidance(target, [WeightedTerm(Entropy(), 0.3)])
    first.measure(1.0, {"entropy": 3.0})
    second = Guidance(target, [WeightedTerm(Entropy(), 0.3)])
    second.state.update(first.state)
    for guide in (first, second):
        guide.measure(5.0, {"entropy": 1.0})
    assert first.factor("entropy") == second.factor("entropy")


def test_what_it_logs(target: Target) -> None:
    guide = Guidance(target, [WeightedTerm(Entropy(), 0.3), WeightedTerm(Balance(), 0.3)])
    guide(images())
    logits = target(images())
    categorical = torch.distributions.Categorical
    entropies = categorical(logits=logits).entropy()
    assert guide.logged["entropy"] == pytest.approx(float(entropies.mean()), rel=1e-5)
    expected = float(categorical(probs=logits.softmax(1).mean(0)).entropy())
    assert guide.logged["class_entropy"] == pytest.approx(expected, rel=1e-4)
    assert guide.logged["balance"] == pytest.approx(-expected, rel=1e-4)


def test_a_saturated_target_gives_no_pull(target: Target) -> None:
    target.module[1].weight.data.zero_()
    target.module[1].bias.data = torch.tensor([1e4, 0.0, 0.0])
    guide = Guidance(target, [WeightedTerm(Entropy(), 0.3)])
    pull = guide(images())["entropy"]
    assert torch.equal(pull, torch.zeros_like(pull))
    guide.measure(1.0, {"entropy": 0.0})
    assert torch.equal(guide.factor("entropy") * pull, pull)
