"""The arms that know classes: what they take from the target, and what becomes of the prior."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from inversight.adaptation import WeightedTerm, adapt, guidance_terms
from inversight.adaptation.guidance import Guidance
from inversight.adaptation.terms import TERMS, CriticEntropy, Margin, Observation
from inversight.core.errors import ConfigError
from inversight.core.seeding import generator
from inversight.models.target import Target
from inversight.models.transformations import Transformations
from inversight.priors import Critic, StylePrior, train_prior
from inversight.priors.guidance import GeneratedBatch
from inversight.priors.pseudo_labels import predicted_labels, pseudo_labels, soft_labels
from inversight.settings import Adaptation, PriorTraining
from tests.priors.tiny import Stopped, stop_at

SHAPE = (3, 8, 8)
TRAINING = PriorTraining(steps=40, batch_size=8, width=4, z_dim=6, w_dim=8, ada_images=1e6)
EACH = pytest.mark.parametrize("arm", ["conditional", "pseudo-labels", "target-aware"])


class Colours(nn.Module):
    """Logits: how much there is of each colour, ten times, as a convolution gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1, bias=False).requires_grad_(False)
        self.convolution.weight.copy_(10.0 * torch.eye(3).view(3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x).mean((2, 3))


TARGET = Target(Colours(), ("red", "green", "blue"), SHAPE, (0.0,), (1.0,), "colours")


def coloured(n: int = 60) -> Tensor:
    """uint8 images, by turns mostly red, green and blue, each as strongly as it happens."""
    rng = generator(0)
    images = 40.0 * torch.rand(n, *SHAPE, generator=rng)
    images[torch.arange(n), torch.arange(n) % 3] += 60 + 140 * torch.rand(n, 1, 1, generator=rng)
    return images.to(torch.uint8)


PUBLIC = coloured()


@pytest.fixture(scope="module")
def prior() -> StylePrior:
    return train_prior(PUBLIC, training=TRAINING, rng=generator(1))


def run(prior: StylePrior, arm: str, target: Target = TARGET, **changes: Any) -> StylePrior:
    settings: dict[str, Any] = {"steps": 4, "pseudo_labels_top": 10} | changes
    training = settings.pop("training", TRAINING)
    kept = {k: settings.pop(k) for k in ("checkpoint", "progress") if k in settings}
    return adapt(
        prior, target, PUBLIC, arm=arm, adaptation=Adaptation(**settings), training=training,
        rng=generator(2), **kept,
    )  # fmt: skip


def same(one: StylePrior, other: StylePrior) -> bool:
    pairs = [
        (getattr(one, name).state_dict(), getattr(other, name).state_dict())
        for name in ("raw", "average", "critic")
    ]
    return all(torch.equal(a[key], b[key]) for a, b in pairs for key in a | b)


def hits(prior: StylePrior) -> float:
    """Microbatch of a class's samples that the target puts in it."""
    labels = torch.arange(3).repeat_interleave(60)
    images = prior(prior.sample_of(labels, rng=generator(3)))
    return float((TARGET(images).argmax(1) == labels).float().mean())


# What the target says


def test_soft_labels_are_the_targets() -> None:
    found = soft_labels(TARGET, PUBLIC, batch_size=7)
    torch.testing.assert_close(found.exp(), TARGET(PUBLIC.float() / 255).softmax(1))


def test_pseudo_labels_against_a_slow_loop() -> None:
    scores = torch.randint(0, 12, (30, 4), generator=generator(1)).float()  # with ties
    rows, labels = pseudo_labels(scores, 5)
    expected = []
    for label in range(4):
        left = list(range(30))
        for _ in range(5):
            best = max(left, key=lambda i: (float(scores[i, label]), -i))
            left.remove(best)
            expected.append((best, label))
    assert list(zip(rows.tolist(), labels.tolist(), strict=True)) == expected
    assert len({row for row, _ in expected}) < len(expected)  # some serve several classes


def test_every_image_serves_every_class_if_all_are_wanted() -> None:
    rows, labels = pseudo_labels(torch.zeros(3, 2), 3)
    assert rows.tolist() == [0, 1, 2, 0, 1, 2] and labels.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ConfigError, match=r"pseudo_labels_top: expected at most the 3 public"):
        pseudo_labels(torch.zeros(3, 2), 4)


# What guides


def test_terms() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [0.0, 1.0, 3.0]])
    seen = Observation(logits, classes=torch.tensor([0, 2]), critic=torch.tensor([[0.0, 0.0]]))
    assert float(Margin()(seen)) == pytest.approx((3.0 - 2.0) / 2)
    assert float(CriticEntropy()(seen)) == pytest.approx(torch.log(torch.tensor(2.0)).item())
    assert float(Margin()(seen.first(1))) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="with class logits"):
        CriticEntropy()(Observation(logits))


def test_the_target_is_shown_transformed_images() -> None:
    seen: list[Tensor] = []

    class Noting(Colours):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return super().forward(x)

    target = replace(TARGET, module=Noting())
    guide = Guidance(target, [WeightedTerm(Margin(), 1.0)], transform=lambda x, rng: x.flip(3) / 2)
    images = PUBLIC[:6].float() / 255
    classes = torch.tensor([0, 1, 2, 2, 1, 0])
    found = guide(images, GeneratedBatch(classes, generator(0), None))["margin"]
    torch.testing.assert_close(seen[0], images.flip(3) / 2)
    # d/dx of mean over images of 10 (largest other - own), halved by the transformation.
    size = 10.0 / 2 / 64 / 6
    for i in range(6):
        assert float(found[i, classes[i]].mean()) == pytest.approx(-size, rel=1e-4)
        assert float(found[i].sum((1, 2)).abs().sum()) == pytest.approx(2 * 64 * size, rel=1e-4)


def test_the_critics_entropy_pulls_through_the_critic() -> None:
    def critic(x: Tensor) -> Tensor:
        return 5.0 * x.mean((2, 3))

    images = PUBLIC[:6].float() / 255
    found = Guidance(TARGET, [WeightedTerm(CriticEntropy(), 1.0)])(
        images, GeneratedBatch(None, generator(0), critic)
    )
    x = images.clone().requires_grad_(True)
    log_p = critic(x).log_softmax(1)
    (expected,) = torch.autograd.grad(-(log_p.exp() * log_p).sum(1).mean(), x)
    torch.testing.assert_close(found["critic_entropy"], expected)


def test_weights_are_the_arms_own() -> None:
    absolute = Adaptation(scale="absolute")
    assert guidance_terms("pseudo-labels", absolute, None) == [WeightedTerm(TERMS["margin"], 0.2)]
    assert guidance_terms("target-aware", absolute, None) == [
        WeightedTerm(TERMS["critic_entropy"], 1e-4)
    ]
    assert guidance_terms("pseudo-labels", Adaptation(weight=0.7), None) == [
        WeightedTerm(TERMS["margin"], 0.7)
    ]
    for arm, name in (
        ("pseudo-labels", "pseudo_labels_alpha"),
        ("target-aware", "target_aware_entropy"),
    ):
        for changes in ({name: 0.0}, {"weight": 0.0}):
            assert guidance_terms(arm, Adaptation(**changes), None) == []  # type: ignore[arg-type]


# What becomes of the prior


def test_samples_of_a_class_become_that_class(prior: StylePrior) -> None:
    assert hits(run(prior, "pseudo-labels", steps=0)) < 0.45  # all classes are alike at first
    settings = {"steps": 120, "learning_rate_factor": 4.0, "weight": 1.0}
    assert hits(run(prior, "pseudo-labels", **settings)) > 0.8


def test_the_game_alone_teaches_the_classes_too(prior: StylePrior) -> None:
    """The arm ``conditional`` has no margin."""
    settings = {"steps": 120, "learning_rate_factor": 4.0, "conditional_top": 15, "weight": 0.5}
    made = run(prior, "conditional", **settings)
    assert made.num_classes == 3 and hits(made) > 0.6  # a third at first, as above
    assert {"projected", "second_discriminator", "spread"} <= made.log[-1].keys()
    assert "margin" not in made.log[-1]


def test_a_class_of_conditional_has_its_share_of_the_public_images(
    prior: StylePrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least 30, and no more than there are."""
    asked: list[int] = []

    def note(scores: Tensor, top: int) -> tuple[Tensor, Tensor]:
        asked.append(top)
        return pseudo_labels(scores, top)

    module = sys.modules["inversight.adaptation.adapt"]  # a function of that name hides it
    monkeypatch.setattr(module, "pseudo_labels", note)
    many, few = coloured(120), coloured(20)
    for public in (PUBLIC, many, few):
        adapt(
            prior, TARGET, public, arm="conditional", adaptation=Adaptation(steps=1),
            training=TRAINING, rng=generator(2),
        )  # fmt: skip
    assert asked == [30, 40, 20]
    with pytest.raises(ConfigError, match=r"conditional_top: expected at most the 60 public"):
        run(prior, "conditional", conditional_top=61)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 1000), st.data())
def test_every_image_is_predicted_labels_its_class_and_small_classes_are_filled(
    n: int, k: int, seed: int, data: st.DataObject
) -> None:
    least = data.draw(st.integers(1, n))
    scores = torch.rand(n, k, generator=generator(seed)).log_softmax(1)
    rows, classes = predicted_labels(scores, least)
    own = scores.argmax(1).tolist()
    expected = set()
    for c in range(k):
        mine = [row for row in range(n) if own[row] == c]
        others = [row for row in range(n) if own[row] != c]
        others.sort(key=lambda row: -float(scores[row, c]))
        mine += others[: max(0, least - len(mine))]
        expected |= {(row, c) for row in mine}
    found = list(zip(rows.tolist(), classes.tolist(), strict=True))
    assert len(found) == len(set(found)) and set(found) == expected
    assert classes.tolist() == sorted(classes.tolist())
    assert set(rows.tolist()) == set(range(n))


def test_conditional_may_take_all_public_images(
    prior: StylePrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def note(scores: Tensor, least: int) -> tuple[Tensor, Tensor]:
        asked.append(least)
        return predicted_labels(scores, least)

    monkeypatch.setattr(sys.modules["inversight.adaptation.adapt"], "predicted_labels", note)
    made = run(prior, "conditional", steps=1, conditional_top=0)
    assert asked == [30] and made.num_classes == 3
    few = coloured(20)
    adapt(
        prior, TARGET, few, arm="conditional", adaptation=Adaptation(steps=1, conditional_top=0),
        training=TRAINING, rng=generator(2),
    )  # fmt: skip
    assert asked == [30, 20]


def test_the_absolute_scale_is_a_sum_but_for_the_other_papers_arms(
    prior: StylePrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int | None] = []

    class Noting(Guidance):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            found.append(self.summed)

    monkeypatch.setattr(sys.modules["inversight.adaptation.adapt"], "Guidance", Noting)
    for arm in ("diverse", "conditional", "pseudo-labels", "target-aware"):
        run(prior, arm, steps=1, scale="absolute", weight=0.1)
    assert found == [8, 8, 1, 1]  # batches of eight


def test_no_alpha_is_no_guidance(prior: StylePrior) -> None:
    without = run(prior, "pseudo-labels", pseudo_labels_alpha=0.0)
    assert "margin" not in without.log[-1]
    assert same(without, run(prior, "pseudo-labels", weight=0.0))
    guided = run(prior, "pseudo-labels")
    assert "margin" in guided.log[-1] and not same(without, guided)


def test_the_published_scale(prior: StylePrior) -> None:
    for arm in ("pseudo-labels", "target-aware"):
        found = run(prior, arm, scale="absolute")
        assert not same(found, run(prior, arm))


def test_the_critic_learns_the_targets_classes(prior: StylePrior) -> None:
    made = run(prior, "target-aware", steps=100, learning_rate_factor=4.0)
    assert isinstance(made, Critic) and made.num_classes == 0
    logits = made.critic.outputs(PUBLIC.float() / 127.5 - 1.0)
    assert float((logits.argmax(1) == torch.arange(60) % 3).float().mean()) > 0.9
    assert "critic_entropy" in made.log[-1]


@EACH
def test_a_stopped_adaptation_goes_on_bit_by_bit(
    prior: StylePrior, tmp_path: Path, arm: str
) -> None:
    shared = replace(TRAINING, images_at_once=4)
    whole = run(prior, arm, training=shared)

    eager = replace(shared, checkpoint_seconds=1e-6)
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Stopped):  # the checkpoint of step 2 is there, step 3 is lost
        run(prior, arm, training=eager, checkpoint=file, progress=stop_at(3))
    assert file.is_file()
    again = run(prior, arm, training=eager, checkpoint=file)
    assert same(again, whole) and again.log == whole.log


@EACH
def test_the_file_gives_it_back(prior: StylePrior, tmp_path: Path, arm: str) -> None:
    made = run(prior, arm)
    made.save(tmp_path / "prior.safetensors")
    assert same(StylePrior.load(tmp_path / "prior.safetensors"), made)


def test_adapted_once_more(prior: StylePrior) -> None:
    told = run(prior, "target-aware")
    for arm in ("vanilla", "entropy", "target-aware"):
        assert run(told, arm).critic.architecture.critic_classes == 3
    assert run(told, "pseudo-labels").num_classes == 3
    known = run(prior, "pseudo-labels")
    assert run(known, "pseudo-labels").num_classes == 3
    assert run(known, "conditional").num_classes == 3
    for arm in ("vanilla", "diverse", "target-aware"):
        with pytest.raises(ConfigError, match="conditioned on 3 classes") as caught:
            run(known, arm)
        assert "\n" not in str(caught.value)
    four = replace(TARGET, classes=("a", "b", "c", "d"))
    with pytest.raises(ConfigError, match="with as many classes, found 4"):
        run(known, "pseudo-labels", four)


def test_more_pseudo_labels_than_images(prior: StylePrior) -> None:
    with pytest.raises(ConfigError, match="expected at most the 60 public images, found 61"):
        run(prior, "pseudo-labels", pseudo_labels_top=61)


# Transformations


def test_transformations_of_nothing() -> None:
    none = Transformations(least_area=1.0, brightness=0.0, contrast=0.0, degrees=0.0)
    images = PUBLIC[:4].float() / 255
    torch.testing.assert_close(none(images, generator(0), mirror=False), images)
    shown = [none(images, generator(i), mirror=True) for i in range(40)]
    mirrored = [torch.allclose(one, images.flip(3)) for one in shown]
    assert 8 < sum(mirrored) < 32  # half of them, within 4 deviations
    assert all(
        flipped or torch.allclose(one, images) for one, flipped in zip(shown, mirrored, strict=True)
    )


def test_transformations_are_one_draw_for_all_images() -> None:
    images = PUBLIC[:6].float() / 255
    shown = Transformations()(images, generator(4), mirror=True)
    assert shown.shape == images.shape
    assert float(shown.min()) >= 0.0 and float(shown.max()) <= 1.0
    assert not torch.allclose(shown, images, atol=0.02)
    torch.testing.assert_close(
        Transformations()(images[2:3], generator(4), mirror=True), shown[2:3]
    )
    x = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(Transformations()(x, generator(4), mirror=True).sum(), x)
    assert bool((gradient.flatten(1).abs().sum(1) > 0).all())


def test_brightness_contrast_and_crop_keep_their_bounds() -> None:
    flat = torch.full((1, 1, 32, 32), 0.5)
    only = {"least_area": 1.0, "brightness": 0.0, "contrast": 0.0, "degrees": 0.0}
    bright = Transformations(**(only | {"brightness": 0.2}))
    levels = torch.stack([bright(flat, generator(i), mirror=False).mean() for i in range(50)])
    assert 0.4 <= float(levels.min()) < 0.42 and 0.58 < float(levels.max()) <= 0.6
    # A ramp from 0 to 1: of a crop of the area a the range is its side, sqrt(a).
    ramp = torch.linspace(0.0, 1.0, 32).expand(1, 1, 32, 32)
    crop = Transformations(**(only | {"least_area": 0.25}))
    shown = [crop(ramp, generator(i), mirror=False) for i in range(50)]
    ranges = torch.stack([one.max() - one.min() for one in shown])
    assert 0.45 < float(ranges.min()) < 0.6 and float(ranges.max()) > 0.95
