"""The generator tuned to public images: how much better it draws them, and what it leaves alone."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from inversight.adaptation import Adaptation, adapt
from inversight.adaptation.pivotal_tuning import pivots_note, tune
from inversight.adaptation.pivots import Nearness, project
from inversight.errors import ConfigError, StageError
from inversight.priors import StylePrior, train_prior
from inversight.seeding import generator
from inversight.target import Target
from tests.adaptation.test_adapt import PUBLIC, TRAINING, linear_target, run
from tests.adaptation.test_projected import deep

IMAGES = torch.stack(
    [
        (127.5 + 100 * torch.cos(torch.arange(8.0) * k / 3)[None, :, None]).expand(1, 8, 8)
        for k in range(6)
    ]
).to(torch.uint8)
"""Stripes, of which a prior of noise makes none."""


@pytest.fixture(scope="module")
def pivoted() -> StylePrior:
    """A prior with a pivot for each of IMAGES."""
    prior = train_prior(PUBLIC, training=TRAINING, rng=generator(1))
    pivots = project(prior, deep(), IMAGES, PUBLIC, steps=30, rng=generator(3))
    return replace(prior, pivots=pivots)


def tuned(
    prior: StylePrior, *, steps: int, target: Target | None = None, batch: int = 6, **options: Any
) -> StylePrior:
    return tune(
        prior, target or deep(), IMAGES, PUBLIC, steps=steps, batch_size=batch, rng=generator(4),
        **options,
    )  # fmt: skip


def misses(prior: StylePrior) -> Tensor:
    """Root mean squared difference of each pivot's picture from its image, in grey levels of 255."""
    assert prior.pivots is not None
    return (prior(prior.pivots) * 255 - IMAGES).square().mean((1, 2, 3)).sqrt()


@pytest.mark.parametrize("kind", ["maps", "pixels alone"])
def test_images_that_the_prior_could_not_make_are_drawn(pivoted: StylePrior, kind: str) -> None:
    target = deep() if kind == "maps" else linear_target(1)
    before, after = misses(pivoted), misses(tuned(pivoted, steps=150, target=target))
    assert bool((after < before).all()) and float(after.mean()) < 0.75 * float(before.mean())


def test_what_else_the_prior_has_stays(pivoted: StylePrior) -> None:
    kept = {k: v.clone() for k, v in pivoted.average.state_dict().items()}
    made = tuned(pivoted, steps=5)
    assert made.raw is pivoted.raw and made.critic is pivoted.critic
    assert made.pivots is not None and pivoted.pivots is not None
    assert made.pivots.shape == pivoted.pivots.shape and not made.pivots.requires_grad
    assert not torch.equal(made.pivots, pivoted.pivots)
    changed = set()
    for name, value in made.average.state_dict().items():
        assert torch.equal(pivoted.average.state_dict()[name], kept[name])  # the one given
        if not torch.equal(value, kept[name]):
            changed.add(name)
    assert changed and all(name.startswith("synthesis.") for name in changed)
    assert not any(p.requires_grad for p in made.average.parameters())
    w = pivoted.sample(3, rng=generator(2))
    assert torch.equal(made.sample(3, rng=generator(2)), w)
    again = tuned(pivoted, steps=5)
    assert torch.equal(again(w), made(w)) and not torch.equal(made(w), pivoted(w))


def test_a_step_goes_down_the_nearness(pivoted: StylePrior) -> None:
    """Of two steps the last has a step size of zero, and Adam's first is the gradient's sign."""
    made = tuned(pivoted, steps=2, batch=4, learning_rate=3e-3)
    rng = generator(4)
    pivoted.sample(2048, rng=rng)  # by which step sizes of latents are told
    rows = torch.randint(len(IMAGES), (4,), generator=rng)
    fresh = replace(pivoted, average=tuned(pivoted, steps=0).average.requires_grad_(True))
    nearness = Nearness(deep(), PUBLIC)
    assert fresh.pivots is not None
    loss = sum(
        nearness.between(fresh(fresh.pivots[r][None]), nearness.seen(IMAGES[r][None] / 255)) / 4
        for r in rows.tolist()
    )
    assert isinstance(loss, Tensor)
    loss.backward()
    was = dict(pivoted.average.synthesis.named_parameters())
    gradients = dict(fresh.average.synthesis.named_parameters())
    compared = 0
    for name, now in made.average.synthesis.named_parameters():
        gradient = gradients[name].grad
        if gradient is None:
            assert torch.equal(now, was[name])
            continue
        clear = gradient.abs() > 1e-5  # beyond rounding, and beyond Adam's epsilon
        step = (now - was[name])[clear]
        torch.testing.assert_close(step, -3e-3 * gradient[clear].sign(), rtol=0.01, atol=1e-6)
        compared += int(clear.sum())
    assert compared > 100


def test_a_pivot_is_asked_for_of_each_image(pivoted: StylePrior) -> None:
    assert pivoted.pivots is not None
    with pytest.raises(ValueError, match="each of 6 images, found none"):
        tuned(replace(pivoted, pivots=None), steps=1)
    with pytest.raises(ValueError, match="each of 6 images, found 2"):
        tuned(replace(pivoted, pivots=pivoted.pivots[:2]), steps=1)


def test_a_loss_that_is_no_number_stops_it(pivoted: StylePrior) -> None:
    assert pivoted.pivots is not None
    lost = replace(pivoted, pivots=torch.full_like(pivoted.pivots, float("nan")))
    with pytest.raises(StageError, match=r"diverged at step 1 .* adaptation\.pivots_learning"):
        tuned(lost, steps=3)
    with pytest.raises(
        StageError, match=r"diverged at step 2 "
    ):  # the last, whose loss was one still
        tuned(pivoted, steps=2, learning_rate=float("inf"))


def test_an_adaptation_ends_with_it(pivoted: StylePrior) -> None:
    pivots = {"pivots": 2, "pivots_steps": 3, "pivots_surer_than": 0}
    plain = run(pivoted, deep(), "vanilla", **pivots)
    made = run(pivoted, deep(), "vanilla", **pivots, pivots_tuning=20, pivots_missed=0)
    assert made.pivots is not None and plain.pivots is not None
    assert made.pivots.shape == plain.pivots.shape
    w = plain.sample(3, rng=generator(2))
    assert torch.equal(made.sample(3, rng=generator(2)), w)
    assert not torch.equal(made(w), plain(w))
    assert torch.equal(made.raw(w), plain.raw(w))


def test_progress_counts_game_search_and_tuning_together(pivoted: StylePrior) -> None:
    told: list[tuple[int, int]] = []
    adapt(
        pivoted, linear_target(1), PUBLIC, arm="vanilla",
        adaptation=Adaptation(
            steps=2, pivots=1, pivots_surer_than=0, pivots_steps=10, pivots_tuning=3, pivots_missed=0
        ),
        training=TRAINING, rng=generator(2),
        progress=lambda done, total, note="": told.append((done, total)),
    )  # fmt: skip
    assert told == [(n, 15) for n in (1, 2, 12, 13, 14, 15)]


def test_without_images_there_is_nothing_to_tune_to(pivoted: StylePrior) -> None:
    with pytest.raises(ConfigError, match=r"pivots_tuning: .* without adaptation\.pivots"):
        run(pivoted, linear_target(1), "vanilla", pivots_tuning=5)


def missed(prior: StylePrior) -> float:
    nearness = Nearness(deep(), PUBLIC)
    assert prior.pivots is not None
    each = zip(prior.pivots, IMAGES, strict=True)
    found = [float(nearness.between(prior(w[None]), nearness.seen(x[None] / 255))) for w, x in each]
    return sum(found) / len(found)


def test_it_ends_where_it_is_near_enough(pivoted: StylePrior) -> None:
    was = missed(pivoted)
    w = pivoted.sample(3, rng=generator(2))
    idle = tuned(pivoted, steps=5, missed=1.01 * was)
    assert torch.equal(idle(w), pivoted(w)) and idle.log[:-1] == pivoted.log
    assert idle.log[-1] == {"tuned": 0.0, "missed": pytest.approx(was, rel=1e-4)}
    told: list[int] = []
    half = tuned(
        pivoted, steps=400, missed=was / 2, left=was / 2,
        progress=lambda done, total, note="": told.append(done),
    )  # fmt: skip
    assert missed(half) <= was / 2
    assert told[-1] == 400 and told[-2] < 400 and told[-2] % 50 == 0
    assert half.log[-1] == {"tuned": told[-2], "missed": pytest.approx(missed(half), rel=1e-4)}
    enough = missed(half) * 1.001
    shorter = tuned(pivoted, steps=400, missed=enough, left=enough)
    assert shorter.pivots is not None and half.pivots is not None
    assert torch.equal(shorter.pivots, half.pivots)


def test_once_begun_it_may_go_on_for_longer(pivoted: StylePrior) -> None:
    was = missed(pivoted)
    idle = tuned(pivoted, steps=5, missed=1.01 * was, left=0.0)
    assert idle.log[-1]["tuned"] == 0.0
    to_a_half = tuned(pivoted, steps=400, missed=was / 2, left=was / 2)
    further = tuned(pivoted, steps=400, missed=0.9 * was, left=was / 2)
    assert further.log[-1] == to_a_half.log[-1] and further.log[-1]["missed"] <= was / 2
    shorter = tuned(pivoted, steps=400, missed=0.9 * was, left=0.9 * was)
    assert shorter.log[-1]["tuned"] < further.log[-1]["tuned"]


@pytest.mark.parametrize("passing", [1, 2])
def test_to_less_than_half_of_the_images_nothing_is_tuned(
    passing: int, pivoted: StylePrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of so many of three classes the target is surer of images than of samples."""
    samples = torch.zeros(8, 3)
    samples[:, :passing] = -100.0
    adapting = sys.modules["inversight.adaptation.adapt"]
    monkeypatch.setattr(adapting, "sampled_scores", lambda *given, **options: samples)
    w = pivoted.sample(3, rng=generator(2))
    pivots = {"pivots": 1, "pivots_steps": 2, "pivots_missed": 0}
    plain = run(pivoted, linear_target(1), "vanilla", **pivots)
    made = run(pivoted, linear_target(1), "vanilla", **pivots, pivots_tuning=3)
    assert made.pivots is not None and len(made.pivots) == passing
    assert "tuned" not in pivots_note(plain, tuning=0)
    told = pivots_note(made, tuning=3)
    assert f"begin with {passing} public images" in told
    assert ("too few to tune the prior to" in told) is (passing == 1)
    assert ("tuned in 3 steps" in told) is (passing == 2)
    assert torch.equal(made(w), plain(w)) is (passing == 1)
