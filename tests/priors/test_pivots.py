"""Latents of the public images that the target is surest of: which, how near, and what they are for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inversight.adaptation import adapt
from inversight.attacks.selection import classified_pool
from inversight.core.errors import ConfigError, DataError
from inversight.core.seeding import generator
from inversight.models.target import Target
from inversight.priors import StylePrior, train_prior
from inversight.priors.base import Pivoted
from inversight.priors.pivots import (
    ReconstructionLoss,
    confident_images,
    project,
    sample_log_probabilities,
)
from inversight.priors.pseudo_labels import soft_labels
from inversight.settings import Adaptation
from tests.adaptation.test_adapt import PUBLIC, SHAPE, TRAINING, linear_target, run
from tests.adaptation.test_projected import deep
from tests.attacks.toy import problem_of


@pytest.fixture(scope="module")
def prior() -> StylePrior:
    return train_prior(PUBLIC, training=TRAINING, rng=generator(1))


def made_by(prior: StylePrior, n: int) -> Tensor:
    """Images, uint8, that the prior itself can make."""
    return (prior(prior.sample(n, rng=generator(7))) * 255).round().to(torch.uint8)


def found(
    prior: StylePrior, images: Tensor, *, steps: int, target: Target | None = None, batch: int = 32
) -> Tensor:
    return project(
        prior, target or deep(), images, PUBLIC, steps=steps, batch_size=batch, rng=generator(3)
    )


def misses(prior: StylePrior, latents: Tensor, images: Tensor) -> Tensor:
    """Root mean squared difference of each picture from its image, in grey levels of 255."""
    return (prior(latents) * 255 - images).square().mean((1, 2, 3)).sqrt()


def test_each_classs_surest_images_are_taken_once() -> None:
    target = linear_target(1)
    logits = target(PUBLIC.float() / 255).log_softmax(1)
    for count in (1, 5, len(PUBLIC)):
        ranked = [sorted(range(len(PUBLIC)), key=lambda i: -float(logits[i, k])) for k in range(3)]
        expected = sorted({row for one in ranked for row in one[:count]})
        assert confident_images(logits, count).tolist() == expected
    with pytest.raises(ConfigError, match=r"adaptation.pivots: expected at most the 24 public"):
        confident_images(logits, 25)


@given(share=st.floats(0.0, 1.0), count=st.integers(1, len(PUBLIC)))
@settings(max_examples=20)
def test_those_it_is_less_sure_of_than_of_samples_are_left_out(share: float, count: int) -> None:
    target = linear_target(1)
    told = target(PUBLIC.float() / 255).log_softmax(1)
    samples = told[torch.randint(len(PUBLIC), (40,), generator=generator(5))]
    expected = set()
    for k in range(3):
        ranked = sorted(range(len(PUBLIC)), key=lambda i: -float(told[i, k]))
        rivals = sorted(samples[:, k].tolist())[-count:]
        for row in ranked[:count]:
            beaten = sum(one <= float(told[row, k]) for one in rivals)
            if beaten / count >= share:
                expected.add(row)
    found = confident_images(told, count, surer_than=share, samples=samples)
    assert found.tolist() == sorted(expected)


def test_samples_to_be_surer_than_are_asked_for() -> None:
    for samples in (None, torch.zeros(1, 3)):
        with pytest.raises(ValueError, match="at least 2 samples"):
            confident_images(torch.zeros(4, 3), 2, surer_than=0.5, samples=samples)


def test_what_the_target_says_of_samples(prior: StylePrior) -> None:
    target = linear_target(1)
    found = sample_log_probabilities(target, prior, 10, batch_size=4, rng=generator(5))
    latents = prior.truncated(1.0).sample(10, rng=generator(5))
    torch.testing.assert_close(found, target(prior(latents)).log_softmax(1))


def test_a_prior_that_can_do_better_has_no_pivots(prior: StylePrior) -> None:
    """Grey public images, of which the target is less sure than of any sample."""
    samples = sample_log_probabilities(linear_target(1), prior, 2048, rng=generator(5))
    grey = torch.full((24, *SHAPE), 128, dtype=torch.uint8)
    unsure = linear_target(1)(grey.float() / 255).log_softmax(1)[0]
    assert bool((samples.topk(4, dim=0).values > unsure).all())
    told: list[tuple[int, int]] = []
    adaptation = Adaptation(steps=0, pivots=4, pivots_surer_than=0.1, pivots_tuning=5)
    adapted = adapt(
        prior, linear_target(1), grey, arm="vanilla", adaptation=adaptation, training=TRAINING,
        rng=generator(2), progress=lambda done, total, note="": told.append((done, total)),
    )  # fmt: skip
    assert adapted.pivots is None and not told
    w = prior.sample(3, rng=generator(3))
    assert torch.equal(adapted(w), prior(w))


def test_too_many_are_refused_before_the_game(prior: StylePrior) -> None:
    told: list[int] = []
    with pytest.raises(ConfigError, match=r"adaptation.pivots"):
        adapt(
            prior, linear_target(1), PUBLIC, arm="vanilla",
            adaptation=Adaptation(steps=3, pivots=25), training=TRAINING, rng=generator(2),
            progress=lambda done, total, note="": told.append(done),
        )  # fmt: skip
    assert not told


def test_the_search_begins_at_the_nearest_sample(prior: StylePrior) -> None:
    images = PUBLIC[:5]
    samples = prior.sample(2048, rng=generator(3))
    shown = prior(samples)
    nearest = [int((shown - i.float() / 255).square().sum((1, 2, 3)).argmin()) for i in images]
    assert torch.equal(found(prior, images, steps=0), samples[nearest])


def test_large_images_are_compared_at_a_small_size() -> None:
    public = torch.randint(0, 256, (6, 1, 32, 32), generator=generator(0)).to(torch.uint8)
    prior = train_prior(public, training=replace(TRAINING, steps=1), rng=generator(1))
    samples = prior.sample(2048, rng=generator(3))
    small = nn.AvgPool2d(2)
    shown = small(prior(samples))
    nearest = [
        int((shown - small(i[None].float() / 255)).square().sum((1, 2, 3)).argmin()) for i in public
    ]
    made = project(prior, deep(), public, public, steps=0, rng=generator(3))
    torch.testing.assert_close(made, samples[nearest])


@pytest.mark.parametrize("kind", ["maps", "pixels alone"])
def test_what_the_prior_can_make_is_found(prior: StylePrior, kind: str) -> None:
    """It comes nearer than the nearest of two thousand samples, with and without convolutions."""
    target = deep() if kind == "maps" else linear_target(1)
    images = made_by(prior, 12)
    before = misses(prior, found(prior, images, steps=0, target=target), images)
    after = misses(prior, found(prior, images, steps=100, target=target), images)
    assert float(after.mean()) < 0.5 * float(before.mean())
    assert (after < before).float().mean() > 0.8


def test_a_pivot_hangs_on_no_other(prior: StylePrior) -> None:
    images = made_by(prior, 7)
    whole = found(prior, images, steps=6)
    torch.testing.assert_close(found(prior, images, steps=6, batch=3), whole, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found(prior, images[2:3], steps=6), whole[2:3], atol=1e-4, rtol=1e-3)


def test_loss_in_closed_form() -> None:
    """Pixels and maps, each in standard deviations of the public images, weigh the same."""
    target = deep()
    loss = ReconstructionLoss(target, PUBLIC)
    spread = float((PUBLIC.float() / 255).std()) + 1e-3
    a, b = (torch.rand(4, *SHAPE, generator=generator(seed)) for seed in (1, 2))
    kinds = [(a / spread, b / spread)]
    kinds += list(zip(loss.maps.of(a), loss.maps.of(b), strict=True))
    assert len(kinds) == 5
    total = 0.0
    for one, other in kinds:
        for row in range(4):
            total += float((one[row] - other[row]).square().mean()) / len(kinds)
    assert float(loss(a, loss.features(b))) == pytest.approx(total, rel=1e-5)
    assert float(loss(a, loss.features(a))) == 0.0


def test_they_change_nothing_but_themselves(prior: StylePrior, tmp_path: Path) -> None:
    without = run(prior, linear_target(1), "vanilla")
    adapted = run(prior, linear_target(1), "vanilla", pivots=2, pivots_surer_than=0, pivots_steps=3)
    assert isinstance(adapted, Pivoted) and without.pivots is None
    for one, other in zip(
        adapted.average.state_dict().values(), without.average.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    assert adapted.pivots is not None
    expected = len(confident_images(soft_labels(linear_target(1), PUBLIC), 2))
    assert adapted.pivots.shape == (expected, TRAINING.w_dim)
    adapted.save(tmp_path / "prior.safetensors")
    again = StylePrior.load(tmp_path / "prior.safetensors")
    assert again.pivots is not None and torch.equal(again.pivots, adapted.pivots)
    assert adapted.truncated(0.5).pivots is adapted.pivots
    moved = adapted.to("meta")
    assert moved.pivots is not None and moved.pivots.device.type == "meta"


def test_a_further_adaptation_finds_its_own(prior: StylePrior) -> None:
    """Pivots belong to the generator that they were found for."""
    adapted = run(prior, linear_target(1), "vanilla", pivots=2, pivots_surer_than=0, pivots_steps=1)
    assert adapted.pivots is not None
    assert run(adapted, linear_target(1), "vanilla").pivots is None


def test_without_a_game_the_prior_stays(prior: StylePrior) -> None:
    assert not Adaptation(steps=0, pivots=1).keeps_prior and Adaptation(steps=0).keeps_prior
    told: list[tuple[int, int]] = []
    settings = Adaptation(steps=0, pivots=4, pivots_surer_than=0, pivots_steps=3, images_at_once=4)
    adapted = adapt(
        prior, linear_target(1), PUBLIC, arm="vanilla", adaptation=settings, training=TRAINING,
        rng=generator(2), progress=lambda done, total, note="": told.append((done, total)),
    )  # fmt: skip
    w = prior.sample(3, rng=generator(2))
    assert torch.equal(adapted(w), prior(w)) and adapted.pivots is not None
    parts = -(-len(adapted.pivots) // 4)
    assert told == [(3 * i, 3 * parts) for i in range(1, parts + 1)]


def test_progress_counts_game_and_search_together(prior: StylePrior) -> None:
    told: list[tuple[int, int]] = []
    adapt(
        prior, linear_target(1), PUBLIC, arm="vanilla",
        adaptation=Adaptation(steps=3, pivots=1, pivots_surer_than=0, pivots_steps=10), training=TRAINING,
        rng=generator(2), progress=lambda done, total, note="": told.append((done, total)),
    )  # fmt: skip
    assert told == [(1, 13), (2, 13), (3, 13), (13, 13)]


def pool_of(prior: StylePrior, size: int) -> Tensor:
    problem = problem_of(linear_target(1), prior, seed=4)
    return classified_pool(problem, size, truncation=1.0).latents


def test_attacks_pools_begin_with_them(prior: StylePrior) -> None:
    pivots = torch.randn(6, TRAINING.w_dim, generator=generator(5))
    plain = pool_of(prior, 20)
    known = pool_of(replace(prior, pivots=pivots), 20)
    assert known.shape == plain.shape and torch.equal(known[6:], plain[6:])
    assert {tuple(row) for row in known[:6].tolist()} == {tuple(row) for row in pivots.tolist()}
    few = pool_of(replace(prior, pivots=pivots), 8)
    assert torch.equal(few[4:], pool_of(prior, 8)[4:])
    assert {tuple(row) for row in few[:4].tolist()} < {tuple(row) for row in pivots.tolist()}


def test_pivots_of_a_prior_with_a_cutoff_are_for_all_layers(prior: StylePrior) -> None:
    pivots = torch.randn(2, TRAINING.w_dim, generator=generator(5))
    known = replace(prior, pivots=pivots, psi=0.5, cutoff=1)

    class Cut(StylePrior):
        def truncated(self, psi: float, cutoff: int | None = None) -> StylePrior:
            return known

    latents = pool_of(Cut(**{k: getattr(known, k) for k in known.__dataclass_fields__}), 6)
    assert latents.shape == (6, prior.average.num_ws, TRAINING.w_dim)
    for layer in range(prior.average.num_ws):
        assert {tuple(row) for row in latents[:2, layer].tolist()} == {
            tuple(row) for row in pivots.tolist()
        }


def test_pivots_of_another_width_are_refused(prior: StylePrior, tmp_path: Path) -> None:
    file = tmp_path / "prior.safetensors"
    replace(prior, pivots=torch.zeros(2, TRAINING.w_dim)).save(file)
    with safe_open(file, "pt") as handle:
        facts = handle.metadata()
    assert json.loads(facts["inversight.prior"])
    save_file({**load_file(file), "pivots": torch.zeros(2, 3)}, file, metadata=facts)
    with pytest.raises(DataError, match=r"not a prior .*pivots of the shape \(2, 3\)"):
        StylePrior.load(file)
