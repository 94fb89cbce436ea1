"""The generator tuned to public images: how much better it draws them, and what it leaves alone."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from inversight.adaptation import adapt
from inversight.adaptation.adapt import TUNING_FILE
from inversight.core.errors import ConfigError, DataError, StageError
from inversight.core.progress import Progress
from inversight.core.seeding import generator
from inversight.models.target import Target
from inversight.priors import StylePrior, train_prior
from inversight.priors.pivotal_tuning import describe_pivots, saved_pivots, tune
from inversight.priors.pivots import ReconstructionLoss, project
from inversight.settings import Adaptation
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


def test_a_step_goes_down_the_loss(pivoted: StylePrior) -> None:
    """Of two steps the last has a step size of zero, and Adam's first is the gradient's sign."""
    made = tuned(pivoted, steps=2, batch=4, learning_rate=3e-3)
    rng = generator(4)
    pivoted.sample(2048, rng=rng)  # by which step sizes of latents are told
    rows = torch.randint(len(IMAGES), (4,), generator=rng)
    fresh = replace(pivoted, average=tuned(pivoted, steps=0).average.requires_grad_(True))
    loss = ReconstructionLoss(deep(), PUBLIC)
    assert fresh.pivots is not None
    loss = sum(
        loss(fresh(fresh.pivots[r][None]), loss.features(IMAGES[r][None] / 255)) / 4
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


class Stopped(Exception):
    pass


def stop_at(step: int) -> Progress:
    def progress(done: int, total: int, note: str = "") -> None:
        if done == step:
            raise Stopped

    return progress


def equal(one: StylePrior, other: StylePrior) -> bool:
    assert one.pivots is not None and other.pivots is not None
    mine, theirs = one.average.state_dict(), other.average.state_dict()
    return torch.equal(one.pivots, other.pivots) and all(
        torch.equal(mine[name], theirs[name]) for name in mine
    )


@pytest.fixture
def at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inversight.priors.pivotal_tuning._CHECKPOINT_SECONDS", -1.0)


@pytest.mark.usefixtures("at_every_step")
@pytest.mark.parametrize("step", [1, 49, 50, 53])
def test_stopped_and_gone_on_with_it_is_the_same_bit_by_bit(
    pivoted: StylePrior, tmp_path: Path, step: int
) -> None:
    file = tmp_path / "tuning"
    kept = {"steps": 56, "missed": 0.0, "left": 0.0}
    undisturbed = tuned(pivoted, **kept)
    with pytest.raises(Stopped):
        tuned(pivoted, **kept, checkpoint=file, progress=stop_at(step))
    begun = saved_pivots(file)
    assert (begun is None) == (step == 1)  # what is told comes before what is kept
    steps: list[int] = []
    made = tuned(pivoted, **kept, checkpoint=file, progress=lambda done, *_: steps.append(done))
    assert equal(made, undisturbed) and steps[0] == step
    assert made.log[-1] == undisturbed.log[-1]


@pytest.mark.usefixtures("at_every_step")
def test_a_checkpoint_of_something_else_is_refused(pivoted: StylePrior, tmp_path: Path) -> None:
    file = tmp_path / "tuning"
    assert saved_pivots(file) is None
    with pytest.raises(Stopped):
        tuned(pivoted, steps=9, checkpoint=file, progress=stop_at(3))
    assert pivoted.pivots is not None
    with pytest.raises(DataError, match=r"expected latents \(5, 5\), found \(6, 5\)\); go on with"):
        tune(
            replace(pivoted, pivots=pivoted.pivots[:5]), deep(), IMAGES[:5], PUBLIC, steps=9,
            checkpoint=file, rng=generator(4),
        )  # fmt: skip
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])
    for use in (lambda: tuned(pivoted, steps=9, checkpoint=file), lambda: saved_pivots(file)):
        with pytest.raises(DataError, match="not a checkpoint of this tuning"):
            use()
    save_file({"latents": pivoted.pivots}, file)
    with pytest.raises(DataError, match="not a checkpoint of this tuning"):
        tuned(pivoted, steps=9, checkpoint=file)


@pytest.mark.usefixtures("at_every_step")
def test_the_last_good_state_of_a_tuning_that_diverges_is_named(
    pivoted: StylePrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tuning"
    between, calls = ReconstructionLoss.__call__, [0]

    def fails(self: ReconstructionLoss, images: Tensor, wanted: list[Tensor]) -> Tensor:
        calls[0] += images.requires_grad
        return between(self, images, wanted) * (float("nan") if calls[0] == 4 else 1.0)

    monkeypatch.setattr(ReconstructionLoss, "__call__", fails)
    with pytest.raises(StageError, match=f"diverged at step 4 .*last good state is in {file}"):
        tuned(pivoted, steps=9, checkpoint=file)
    with safe_open(file, "pt") as handle:
        assert json.loads(handle.metadata()["tuning"]) == {"done": 3}
    monkeypatch.undo()
    assert equal(tuned(pivoted, steps=9, checkpoint=file), tuned(pivoted, steps=9))


@pytest.mark.usefixtures("at_every_step")
def test_an_adaptation_that_stops_in_it_goes_on_without_a_new_search(
    pivoted: StylePrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Adaptation(
        steps=5,
        pivots=2,
        pivots_steps=3,
        pivots_surer_than=0.0,
        pivots_tuning=20,
        pivots_missed=0.0,
    )

    def adapted(**options: Any) -> StylePrior:
        return adapt(
            pivoted, deep(), PUBLIC, arm="vanilla", adaptation=settings, training=TRAINING,
            rng=generator(2), **options,
        )  # fmt: skip

    tells: list[int] = []
    undisturbed = adapted(progress=lambda done, *_: tells.append(done))
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Stopped):
        adapted(checkpoint=file, progress=stop_at(tells[-1] - 5))
    assert (tmp_path / TUNING_FILE).is_file()
    module = sys.modules["inversight.adaptation.adapt"]  # a function of that name hides it
    monkeypatch.setattr(module, "project", None)
    assert equal(adapted(checkpoint=file), undisturbed)
    assert not (tmp_path / TUNING_FILE).exists()


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
    loss = ReconstructionLoss(deep(), PUBLIC)
    assert prior.pivots is not None
    each = zip(prior.pivots, IMAGES, strict=True)
    found = [float(loss(prior(w[None]), loss.features(x[None] / 255))) for w, x in each]
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
    monkeypatch.setattr(adapting, "sample_log_probabilities", lambda *given, **options: samples)
    w = pivoted.sample(3, rng=generator(2))
    pivots = {"pivots": 1, "pivots_steps": 2, "pivots_missed": 0}
    plain = run(pivoted, linear_target(1), "vanilla", **pivots)
    made = run(pivoted, linear_target(1), "vanilla", **pivots, pivots_tuning=3)
    assert made.pivots is not None and len(made.pivots) == passing
    assert "tuned" not in describe_pivots(plain, tuning=0)
    told = describe_pivots(made, tuning=3)
    assert f"begin with {passing} public images" in told
    assert ("too few to tune the prior to" in told) is (passing == 1)
    assert ("tuned in 3 steps" in told) is (passing == 2)
    assert torch.equal(made(w), plain(w)) is (passing == 1)
