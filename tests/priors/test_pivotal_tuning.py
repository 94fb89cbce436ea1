"""Pivotal tuning: how much nearer images come, what stays as it was, when it ends, and how it resumes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from inversight.adaptation.adapt import TUNING_FILE
from inversight.core.checkpoints import read_tensors
from inversight.core.errors import ConfigError, DataError, StageError
from inversight.core.seeding import generator
from inversight.priors import StylePrior
from inversight.priors.pivotal_tuning import describe_pivots, saved_pivots, tune
from inversight.priors.pivots import ReconstructionLoss, project
from tests.priors.tiny import (
    PUBLIC,
    Record,
    Stopped,
    adapted,
    assert_equal,
    assert_same,
    convolved,
    linear_target,
    stop_at,
    trained,
)

ADAPTING = sys.modules["inversight.adaptation.adapt"]  # a function of that name hides it
TARGET = convolved(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
STRIPES = (127.5 + 100 * torch.cos(torch.arange(8.0) * torch.arange(6.0)[:, None] / 3)).byte()
IMAGES = STRIPES[:, None, :, None].expand(-1, 1, 8, 8)
"""Stripes, of which a prior of noise makes none."""


@pytest.fixture(scope="module")
def pivoted() -> StylePrior:
    """A prior with a pivot for each of IMAGES."""
    loss = ReconstructionLoss(TARGET, PUBLIC)
    pivots = project(trained(), loss, IMAGES, steps=30, samples=200, rng=generator(3))
    return replace(trained(), pivots=pivots)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute the loss of all images every fourth step, and write a checkpoint after every step."""
    monkeypatch.setattr("inversight.priors.pivotal_tuning._CHECK_INTERVAL", 4)
    monkeypatch.setattr("inversight.priors.pivotal_tuning._CHECKPOINT_SECONDS", -1.0)


def tuned(prior: StylePrior, *, steps: int, target: Any = TARGET, **options: Any) -> StylePrior:
    given = {"images": IMAGES, "batch_size": 6} | options
    loss = ReconstructionLoss(target, PUBLIC)
    return tune(prior, loss, steps=steps, rng=generator(4), **given)


def vanilla(prior: StylePrior, **options: Any) -> StylePrior:
    given = {"pivots": 2, "pivots_steps": 3, "pivots_surer_than": 0.0, "pivots_missed": 0.0}
    return adapted(prior, linear_target(1), "vanilla", **(given | options))


def pivots_of(prior: StylePrior) -> Tensor:
    assert prior.pivots is not None
    return prior.pivots


def misses(prior: StylePrior) -> Tensor:
    """Root mean squared difference of each pivot's picture from its image, in grey levels of 255."""
    return (prior(pivots_of(prior)) * 255 - IMAGES).square().mean((1, 2, 3)).sqrt()


@pytest.mark.parametrize("target", [TARGET, linear_target(1)], ids=["maps", "pixels"])
def test_tuning_comes_nearer_to_images_unlike_the_prior(pivoted: StylePrior, target: Any) -> None:
    before, after = misses(pivoted), misses(tuned(pivoted, steps=60, target=target))
    assert bool((after < before).all()) and float(after.mean()) < 0.85 * float(before.mean())


def test_tuning_changes_synthesis_and_pivots_only(pivoted: StylePrior) -> None:
    before = {k: v.clone() for k, v in pivoted.average.state_dict().items()}
    found = tuned(pivoted, steps=5)
    assert found.raw is pivoted.raw and found.critic is pivoted.critic
    pivots = pivots_of(found)
    assert pivots.shape == pivots_of(pivoted).shape and not pivots.requires_grad
    assert not torch.equal(pivots, pivots_of(pivoted))
    assert_same(pivoted.average.state_dict(), before)
    after = found.average.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("synthesis.") for name in changed)
    assert not any(p.requires_grad for p in found.average.parameters())
    w = pivoted.sample(3, rng=generator(2))
    assert torch.equal(found.sample(3, rng=generator(2)), w)
    assert not torch.equal(found(w), pivoted(w))
    assert_equal(tuned(pivoted, steps=5), found)


def test_a_step_follows_the_gradient_of_the_loss(pivoted: StylePrior) -> None:
    """Of two steps the last has a step size of zero, and Adam's first is the gradient's sign."""
    found = tuned(pivoted, steps=2, batch_size=4, learning_rate=3e-3)
    rng = generator(4)
    pivoted.sample(2048, rng=rng)  # from which the step size of latents is computed
    rows = torch.randint(len(IMAGES), (4,), generator=rng)
    fresh = replace(pivoted, average=tuned(pivoted, steps=0).average.requires_grad_(True))
    loss = ReconstructionLoss(TARGET, PUBLIC)
    (loss(fresh(pivots_of(fresh)[rows]), loss.features(IMAGES[rows] / 255)) / 4).backward()
    was = dict(pivoted.average.synthesis.named_parameters())
    gradients = dict(fresh.average.synthesis.named_parameters())
    compared = 0
    for name, now in found.average.synthesis.named_parameters():
        gradient = gradients[name].grad
        if gradient is None:
            assert torch.equal(now, was[name])
            continue
        clear = gradient.abs() > 1e-5  # beyond rounding, and beyond Adam's epsilon
        step = (now - was[name])[clear]
        torch.testing.assert_close(step, -3e-3 * gradient[clear].sign(), rtol=0.01, atol=1e-6)
        compared += int(clear.sum())
    assert compared > 100


def test_rejects_another_number_of_pivots(pivoted: StylePrior) -> None:
    for pivots, found in ((None, "none"), (pivots_of(pivoted)[:2], "2")):
        with pytest.raises(ValueError, match=f"each of 6 images, found {found}"):
            tuned(replace(pivoted, pivots=pivots), steps=1)


def test_divergence_is_an_error(pivoted: StylePrior) -> None:
    lost = replace(pivoted, pivots=torch.full_like(pivots_of(pivoted), float("nan")))
    with pytest.raises(StageError, match=r"diverged at step 1 .* adaptation\.pivots_learning"):
        tuned(lost, steps=3)
    # In the last step, whose loss is still finite.
    with pytest.raises(StageError, match=r"diverged at step 2 "):
        tuned(pivoted, steps=2, learning_rate=float("inf"))


@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_resumes_bit_by_bit(pivoted: StylePrior, tmp_path: Path, step: int) -> None:
    file, record = tmp_path / "tuning", Record()
    options: dict[str, Any] = {"steps": 9, "missed": 0.0, "left": 0.0}
    with pytest.raises(Stopped):
        tuned(pivoted, **options, checkpoint=file, progress=stop_at(step))
    assert (saved_pivots(file) is None) == (step == 1)  # progress comes before the checkpoint
    resumed = tuned(pivoted, **options, checkpoint=file, progress=record)
    assert record[0] == (step, 9)
    assert_equal(resumed, tuned(pivoted, **options))


def test_rejects_a_checkpoint_of_something_else(pivoted: StylePrior, tmp_path: Path) -> None:
    file = tmp_path / "tuning"
    assert saved_pivots(file) is None
    with pytest.raises(Stopped):
        tuned(pivoted, steps=9, checkpoint=file, progress=stop_at(3))
    fewer = replace(pivoted, pivots=pivots_of(pivoted)[:5])
    with pytest.raises(DataError, match=r"not a checkpoint of this tuning .* go on with"):
        tuned(fewer, steps=9, images=IMAGES[:5], checkpoint=file)
    half = file.read_bytes()[: file.stat().st_size // 2]
    for content in (half, save({"pivots/latents": pivots_of(pivoted)})):
        file.write_bytes(content)
        with pytest.raises(DataError, match="not a checkpoint of this tuning"):
            tuned(pivoted, steps=9, checkpoint=file)
    file.write_bytes(half)
    with pytest.raises(DataError, match="not a checkpoint of this tuning"):
        saved_pivots(file)


def test_divergence_names_the_last_good_state(
    pivoted: StylePrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tuning"
    between, calls = ReconstructionLoss.__call__, [0]

    def fails(self: ReconstructionLoss, images: Tensor, wanted: list[Tensor]) -> Tensor:
        calls[0] += images.requires_grad
        return between(self, images, wanted) * (float("nan") if calls[0] == 4 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(ReconstructionLoss, "__call__", fails)
        with pytest.raises(StageError, match=f"diverged at step 4 .*last good state is in {file}"):
            tuned(pivoted, steps=9, checkpoint=file)
    assert json.loads(read_tensors(file)[0]["tuning"]) == {"done": 3}
    assert_equal(tuned(pivoted, steps=9, checkpoint=file), tuned(pivoted, steps=9))


def test_an_adaptation_resumes_in_the_tuning_without_a_new_search(
    pivoted: StylePrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, file = Record(), tmp_path / "checkpoint.safetensors"
    whole = vanilla(pivoted, pivots_tuning=9, progress=record)
    stop = stop_at(record[-1][0] - 5)
    with pytest.raises(Stopped):
        vanilla(pivoted, pivots_tuning=9, checkpoint=file, progress=stop)
    assert (tmp_path / TUNING_FILE).is_file()
    monkeypatch.setattr(ADAPTING, "project", None)
    assert_equal(vanilla(pivoted, pivots_tuning=9, checkpoint=file), whole)
    assert not (tmp_path / TUNING_FILE).exists()


def test_an_adaptation_ends_with_the_tuning(pivoted: StylePrior) -> None:
    record = Record()
    plain = vanilla(pivoted)
    found = vanilla(pivoted, pivots_tuning=3, progress=record)
    assert pivots_of(found).shape == pivots_of(plain).shape
    w = plain.sample(3, rng=generator(2))
    assert torch.equal(found.sample(3, rng=generator(2)), w)
    assert not torch.equal(found(w), plain(w))
    assert torch.equal(found.raw(w), plain.raw(w))
    # Progress counts training, search and tuning together.
    assert record == [(n, 11) for n in (1, 2, 3, 4, 5, 8, 9, 10, 11)]


def test_rejects_tuning_without_pivots(pivoted: StylePrior) -> None:
    with pytest.raises(ConfigError, match=r"pivots_tuning: .* without adaptation\.pivots"):
        vanilla(pivoted, pivots=0, pivots_tuning=5)


def missed(prior: StylePrior) -> float:
    """The mean loss of IMAGES at the pivots."""
    loss = ReconstructionLoss(TARGET, PUBLIC)
    return float(loss(prior(pivots_of(prior)), loss.features(IMAGES / 255))) / len(IMAGES)


def test_tuning_ends_when_the_loss_is_low_enough(pivoted: StylePrior) -> None:
    before = missed(pivoted)
    w = pivoted.sample(3, rng=generator(2))
    idle = tuned(pivoted, steps=5, missed=1.01 * before, left=0.0)
    assert torch.equal(idle(w), pivoted(w)) and idle.log[:-1] == pivoted.log
    assert idle.log[-1] == {"tuned": 0.0, "missed": pytest.approx(before, rel=1e-4)}
    record, goal = Record(), 0.7 * before
    found = tuned(pivoted, steps=100, missed=goal, left=goal, progress=record)
    *_, (last, _), end = record
    assert missed(found) <= goal
    assert end == (100, 100) and 4 < last < 100 and last % 4 == 0
    assert found.log[-1] == {"tuned": last, "missed": pytest.approx(missed(found), rel=1e-4)}
    # ``missed`` counts before the first step only, ``left`` afterwards.
    assert tuned(pivoted, steps=100, missed=0.9 * before, left=goal).log[-1] == found.log[-1]
    shorter = tuned(pivoted, steps=100, missed=0.9 * before, left=0.95 * before)
    assert shorter.log[-1]["tuned"] < last


@pytest.mark.parametrize("passing", [1, 2])
def test_tunes_only_if_half_of_the_images_are_left(
    passing: int, pivoted: StylePrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In ``passing`` of three classes the target is more confident in images than in samples."""
    samples = torch.zeros(8, 3)
    samples[:, :passing] = -100.0
    monkeypatch.setattr(ADAPTING, "sample_log_probabilities", lambda *given, **options: samples)
    w = pivoted.sample(3, rng=generator(2))
    options = {"pivots": 1, "pivots_surer_than": 0.5}
    plain, found = (vanilla(pivoted, **options, pivots_tuning=steps) for steps in (0, 3))
    assert len(pivots_of(found)) == passing
    assert "tuned" not in describe_pivots(plain, tuning=0)
    text = describe_pivots(found, tuning=3)
    assert f"begin with {passing} public images" in text
    assert ("too few to tune the prior to" in text) is (passing == 1)
    assert ("tuned in 3 steps" in text) is (passing == 2)
    assert torch.equal(found(w), plain(w)) is (passing == 1)
