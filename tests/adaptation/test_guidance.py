"""The target's pull: its length, its direction, its memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from inversight.adaptation.guidance import Guidance
from inversight.adaptation.preconditioners import Identity
from inversight.objectives import entropy
from inversight.target import Target

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


def gan(n: int = 4) -> Tensor:
    return torch.randn(n, *SHAPE, generator=rng(2))


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


@pytest.mark.parametrize("weight", [0.3, 2.0])
def test_the_first_pull_has_the_documented_length_and_direction(
    target: Target, weight: float
) -> None:
    guide = Guidance(target, objective=entropy, preconditioner=Identity(), weight=weight)
    pull = guide(images(), gan())
    assert float(pull.norm()) == pytest.approx(weight * float(gan().norm()), rel=1e-5)
    expected = entropy_gradient(target, images())
    cosine = torch.nn.functional.cosine_similarity(pull.double().flatten(), expected.flatten(), 0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-4)


def test_the_pull_scales_with_the_gan_and_not_with_the_objective(target: Target) -> None:
    def pull(objective_scale: float, gan_scale: float) -> Tensor:
        guide = Guidance(
            target,
            objective=lambda logits, labels: objective_scale * entropy(logits),
            preconditioner=Identity(),
            weight=0.3,
        )
        return guide(images(), gan_scale * gan())

    torch.testing.assert_close(pull(1.0, 1.0), pull(100.0, 1.0))
    torch.testing.assert_close(5.0 * pull(1.0, 1.0), pull(1.0, 5.0))


def test_a_preconditioner_turns_and_does_not_stretch(target: Target) -> None:
    def swap(x: Tensor, g: Tensor) -> Tensor:
        return 1000.0 * g.flip(3)

    plain = Guidance(target, objective=entropy, preconditioner=Identity(), weight=0.3)
    turned = Guidance(target, objective=entropy, preconditioner=swap, weight=0.3)
    a, b = plain(images(), gan()), turned(images(), gan())
    torch.testing.assert_close(a.flip(3), b)
    assert turned.logged["cosine"] < plain.logged["cosine"] == pytest.approx(1.0)


def test_lengths_are_running_root_mean_squares(target: Target) -> None:
    guide = Guidance(target, objective=entropy, preconditioner=Identity(), weight=1.0, memory=0.5)
    guide(images(), gan())
    second = guide(images(), 3.0 * gan())
    # Weights 1/3 and 2/3 of the squares 1 and 9, in units of the first length.
    expected = float(gan().norm()) * (1 / 3 * 1 + 2 / 3 * 9) ** 0.5
    assert float(second.norm()) == pytest.approx(expected, rel=1e-5)


def test_the_state_goes_on_where_it_was(target: Target) -> None:
    first = Guidance(target, objective=entropy, preconditioner=Identity(), weight=0.3)
    first(images(), gan())
    second = Guidance(target, objective=entropy, preconditioner=Identity(), weight=0.3)
    second.state.update(first.state)
    assert torch.equal(first(images(), 2 * gan()), second(images(), 2 * gan()))


def test_what_it_logs(target: Target) -> None:
    guide = Guidance(target, objective=entropy, preconditioner=Identity(), weight=0.3)
    guide(images(), gan())
    logits = target(images())
    assert guide.logged["objective"] == pytest.approx(float(entropy(logits).mean()), rel=1e-5)
    mean = logits.softmax(1).mean(0)
    expected = float(torch.distributions.Categorical(probs=mean).entropy())
    assert guide.logged["class_entropy"] == pytest.approx(expected, rel=1e-4)


def test_a_saturated_target_gives_no_pull(target: Target) -> None:
    target.module[1].weight.data.zero_()
    target.module[1].bias.data = torch.tensor([1e4, 0.0, 0.0])
    guide = Guidance(target, objective=entropy, preconditioner=Identity(), weight=0.3)
    pull = guide(images(), gan())
    assert torch.equal(pull, torch.zeros_like(pull))
