"""The arms that know classes: what they take from the target, and what becomes of the prior."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from inversight.adaptation import WeightedTerm
from inversight.adaptation.guidance import Guidance
from inversight.adaptation.terms import CriticEntropy, Margin, Observation
from inversight.core.seeding import generator
from inversight.models.target import Target
from inversight.priors import Critic, StylePrior, train_prior
from inversight.priors.guidance import GeneratedBatch
from inversight.priors.pseudo_labels import predicted_labels, pseudo_labels, soft_labels
from inversight.settings import PriorTraining
from tests.priors.tiny import adapted, assert_equal
from tests.refusals import refused

ADAPTING = sys.modules["inversight.adaptation.adapt"]  # a function of that name hides it
SHAPE = (3, 8, 8)
TRAINING = PriorTraining(steps=40, batch_size=8, width=4, z_dim=6, w_dim=8, ada_images=1e6)


class Colours(nn.Module):
    """Logits: ten times the mean of each colour, by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1, bias=False).requires_grad_(False)
        self.convolution.weight.copy_(10.0 * torch.eye(3).view(3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x).mean((2, 3))


TARGET = Target(Colours(), ("red", "green", "blue"), SHAPE, (0.0,), (1.0,), "colours")


def coloured(n: int = 60) -> Tensor:
    """uint8 images, by turns mostly red, green and blue."""
    rng = generator(0)
    images = 40.0 * torch.rand(n, *SHAPE, generator=rng)
    images[torch.arange(n), torch.arange(n) % 3] += 60 + 140 * torch.rand(n, 1, 1, generator=rng)
    return images.to(torch.uint8)


PUBLIC = coloured()


@cache
def trained() -> StylePrior:
    return train_prior(PUBLIC, training=TRAINING, rng=generator(1))


def run(
    arm: str, prior: StylePrior | None = None, target: Target = TARGET, public: Tensor = PUBLIC,
    **changes: Any,
) -> StylePrior:  # fmt: skip
    settings = {"steps": 4, "pseudo_labels_top": 10} | changes
    return adapted(prior or trained(), target, arm, public=public, training=TRAINING, **settings)


def hits(prior: StylePrior) -> float:
    """Fraction of the samples of a class that the target predicts to be of that class."""
    labels = torch.arange(3).repeat_interleave(60)
    images = prior(prior.sample_of(labels, rng=generator(3)))
    return float((TARGET(images).argmax(1) == labels).float().mean())


# What the target says


def test_soft_labels_are_the_targets() -> None:
    found = soft_labels(TARGET, PUBLIC, batch_size=7)
    torch.testing.assert_close(found.exp(), TARGET(PUBLIC.float() / 255).softmax(1))


def test_pseudo_labels_equal_a_slow_loop() -> None:
    scores = torch.randint(0, 12, (30, 4), generator=generator(1)).float()  # with ties
    rows, labels = pseudo_labels(scores, 5)
    expected = [
        (row, label)
        for label in range(4)
        for row in sorted(range(30), key=lambda i: (-float(scores[i, label]), i))[:5]
    ]
    assert list(zip(rows.tolist(), labels.tolist(), strict=True)) == expected
    assert len({row for row, _ in expected}) < len(expected)  # some serve several classes


def test_an_image_can_serve_several_classes() -> None:
    rows, labels = pseudo_labels(torch.zeros(3, 2), 3)
    assert rows.tolist() == [0, 1, 2, 0, 1, 2] and labels.tolist() == [0, 0, 0, 1, 1, 1]
    with refused("pseudo_labels_top: expected at most the 3 public"):
        pseudo_labels(torch.zeros(3, 2), 4)


# What guides


def test_margin_and_critic_entropy_by_hand() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [0.0, 1.0, 3.0]])
    seen = Observation(logits, classes=torch.tensor([0, 2]), critic=torch.tensor([[0.0, 0.0]]))
    assert float(Margin()(seen)) == pytest.approx((3.0 - 2.0) / 2)
    assert float(CriticEntropy()(seen)) == pytest.approx(torch.log(torch.tensor(2.0)).item())
    assert float(Margin()(seen.first(1))) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="with class logits"):
        CriticEntropy()(Observation(logits))


def test_target_sees_transformed_images() -> None:
    seen: list[Tensor] = []
    target = replace(TARGET, module=Colours())
    target.module.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    guide = Guidance(target, [WeightedTerm(Margin(), 1.0)], transform=lambda x, rng: x.flip(3) / 2)
    images, classes = PUBLIC[:6].float() / 255, torch.tensor([0, 1, 2, 2, 1, 0])
    found = guide(images, GeneratedBatch(classes, generator(0), None))["margin"]
    torch.testing.assert_close(seen[0], images.flip(3) / 2)
    # d/dx of mean over images of 10 (largest other - own), halved by the transformation.
    size = 10.0 / 2 / 64 / 6
    for i in range(6):
        assert float(found[i, classes[i]].mean()) == pytest.approx(-size, rel=1e-4)
        assert float(found[i].sum((1, 2)).abs().sum()) == pytest.approx(2 * 64 * size, rel=1e-4)


def test_gradient_of_the_critic_entropy_goes_through_the_critic() -> None:
    def critic(x: Tensor) -> Tensor:
        return 5.0 * x.mean((2, 3))

    images = PUBLIC[:6].float() / 255
    guide = Guidance(TARGET, [WeightedTerm(CriticEntropy(), 1.0)])
    found = guide(images, GeneratedBatch(None, generator(0), critic))
    x = images.clone().requires_grad_(True)
    log_p = critic(x).log_softmax(1)
    (expected,) = torch.autograd.grad(-(log_p.exp() * log_p).sum(1).mean(), x)
    torch.testing.assert_close(found["critic_entropy"], expected)


# What becomes of the prior


@pytest.mark.parametrize(
    ("arm", "settings", "expected", "logged"),
    [
        ("pseudo-labels", {"weight": 1.0}, 0.8, {"margin"}),
        ("conditional", {"conditional_top": 15, "weight": 0.5}, 0.5,
         {"projected", "second_discriminator", "spread"}),
    ],
)  # fmt: skip
def test_samples_of_a_class_become_that_class(
    arm: str, settings: dict[str, Any], expected: float, logged: set[str]
) -> None:
    """The arm ``conditional`` has no margin: the game alone teaches it the classes."""
    assert hits(run(arm, steps=0)) < 0.45  # all classes are alike at first
    made = run(arm, steps=40, learning_rate_factor=8.0, **settings)
    assert made.num_classes == 3 and hits(made) > expected
    assert logged <= made.log[-1].keys() and ("margin" in made.log[-1]) == ("margin" in logged)


@pytest.mark.parametrize(
    ("top", "selection", "expected"),
    [(None, "pseudo_labels", [30, 40, 20]), (0, "predicted_labels", [30, 30, 20])],
)
def test_public_images_of_each_class_in_conditional(
    monkeypatch: pytest.MonkeyPatch, top: int | None, selection: str, expected: list[int]
) -> None:
    """Its share, at least 30, and no more than there are; 0: all that the target predicts to be of it."""
    asked: list[int] = []
    select = getattr(ADAPTING, selection)

    def note(scores: Tensor, number: int) -> tuple[Tensor, Tensor]:
        asked.append(number)
        return select(scores, number)

    monkeypatch.setattr(ADAPTING, selection, note)
    for public in (PUBLIC, coloured(120), coloured(20)):
        made = run("conditional", public=public, steps=1, conditional_top=top)
        assert made.num_classes == 3
    assert asked == expected


@pytest.mark.parametrize("setting", ["conditional_top", "pseudo_labels_top"])
def test_refuses_more_images_of_a_class_than_there_are(setting: str) -> None:
    with refused(f"{setting}: expected at most the 60 public images, found 61"):
        run(setting.removesuffix("_top").replace("_", "-"), **{setting: 61})


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 1000), st.data())
def test_predicted_labels_fill_small_classes(
    n: int, k: int, seed: int, data: st.DataObject
) -> None:
    least = data.draw(st.integers(1, n))
    scores = torch.rand(n, k, generator=generator(seed)).log_softmax(1)
    rows, classes = predicted_labels(scores, least)
    own = scores.argmax(1).tolist()
    expected = set()
    for c in range(k):
        best_first = sorted(range(n), key=lambda row: (own[row] != c, -float(scores[row, c])))
        expected |= {(row, c) for row in best_first[: max(least, own.count(c))]}
    found = list(zip(rows.tolist(), classes.tolist(), strict=True))
    assert len(found) == len(set(found)) and set(found) == expected
    assert classes.tolist() == sorted(classes.tolist())
    assert set(rows.tolist()) == set(range(n))


def test_absolute_scale_is_a_sum_except_for_arms_of_other_papers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[int | None] = []

    class Noting(Guidance):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            found.append(self.summed)

    monkeypatch.setattr(ADAPTING, "Guidance", Noting)
    for arm in ("diverse", "conditional", "pseudo-labels", "target-aware"):
        run(arm, steps=1, scale="absolute", weight=0.1)
    assert found == [8, 8, 1, 1]  # batches of eight


def test_alpha_0_is_no_guidance_and_the_published_scale_another() -> None:
    without, guided = run("pseudo-labels", pseudo_labels_alpha=0.0), run("pseudo-labels")
    assert "margin" not in without.log[-1] and "margin" in guided.log[-1]
    assert_equal(without, run("pseudo-labels", weight=0.0))
    absolute = run("pseudo-labels", scale="absolute")
    aware = [run("target-aware", scale=scale) for scale in ("absolute", "relative")]
    for one, other in ((without, guided), (guided, absolute), aware):
        weights = zip(one.raw.parameters(), other.raw.parameters(), strict=True)
        assert not all(torch.equal(a, b) for a, b in weights)


def test_critic_learns_the_targets_classes() -> None:
    made = run("target-aware", steps=50, learning_rate_factor=12.0)
    assert isinstance(made, Critic) and made.num_classes == 0
    logits = made.critic.outputs(PUBLIC.float() / 127.5 - 1.0)
    assert float((logits.argmax(1) == torch.arange(60) % 3).float().mean()) > 0.9
    assert "critic_entropy" in made.log[-1]


@pytest.mark.parametrize("arm", ["conditional", "pseudo-labels", "target-aware"])
def test_file_gives_the_prior_back(tmp_path: Path, arm: str) -> None:
    made = run(arm)
    made.save(tmp_path / "prior.safetensors")
    assert_equal(StylePrior.load(tmp_path / "prior.safetensors"), made)


def test_adapts_an_adapted_prior() -> None:
    aware, conditioned = run("target-aware"), run("pseudo-labels")
    for arm in ("vanilla", "entropy", "target-aware"):
        assert run(arm, aware).critic.architecture.critic_classes == 3
    assert run("pseudo-labels", aware).num_classes == 3
    for arm in ("pseudo-labels", "conditional"):
        assert run(arm, conditioned).num_classes == 3
    for arm in ("vanilla", "diverse", "target-aware"):
        with refused("conditioned on 3 classes"):
            run(arm, conditioned)
    with refused("with as many classes, found 4"):
        run("pseudo-labels", conditioned, replace(TARGET, classes=("a", "b", "c", "d")))
