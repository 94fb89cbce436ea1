"""Pivots: which public images are chosen, how near the prior comes to them, and what attacks do with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from inversight.attacks.selection import classified_pool
from inversight.core.errors import ConfigError, DataError
from inversight.core.seeding import generator
from inversight.priors import StylePrior, train_prior
from inversight.priors.pivots import (
    ReconstructionLoss,
    confident_images,
    project,
    sample_log_probabilities,
)
from inversight.priors.pseudo_labels import soft_labels
from inversight.settings import Adaptation
from tests.attacks.toy import problem_of
from tests.draws import noise
from tests.priors.tiny import (
    PUBLIC,
    SHAPE,
    TRAINING,
    Record,
    adapted,
    assert_equal,
    assert_same,
    deep,
    linear_target,
)

TARGET = linear_target(1)


def scores() -> Tensor:
    return TARGET(PUBLIC.float() / 255).log_softmax(1)


def own_images(prior: StylePrior, n: int) -> Tensor:
    """Images, uint8, that the prior itself can make."""
    return (prior(prior.sample(n, rng=generator(7))) * 255).round().to(torch.uint8)


def found(prior: StylePrior, images: Tensor, *, steps: int, **options: Any) -> Tensor:
    target = options.pop("target", None) or deep()
    loss = ReconstructionLoss(target, PUBLIC)
    return project(prior, loss, images, steps=steps, samples=200, rng=generator(3), **options)


def misses(prior: StylePrior, latents: Tensor, images: Tensor) -> Tensor:
    """Root mean squared difference of each picture from its image, in grey levels of 255."""
    return (prior(latents) * 255 - images).square().mean((1, 2, 3)).sqrt()


@pytest.mark.parametrize("count", [1, 5, len(PUBLIC)])
def test_the_most_confident_images_of_each_class_are_chosen_once(count: int) -> None:
    expected = set(scores().topk(count, dim=0).indices.flatten().tolist())
    assert confident_images(scores(), count).tolist() == sorted(expected)


def test_rejects_more_pivots_than_images() -> None:
    with pytest.raises(ConfigError, match=r"adaptation.pivots: expected at most the 24 public"):
        confident_images(scores(), 25)


@given(share=st.floats(0.0, 1.0), count=st.integers(1, len(PUBLIC)))
@settings(max_examples=20)
def test_images_less_confident_than_samples_are_left_out(share: float, count: int) -> None:
    logits = scores()
    samples = logits[torch.randint(len(PUBLIC), (40,), generator=generator(5))]
    expected = set()
    for k in range(3):
        rivals = samples[:, k].sort().values[-count:]
        for row in logits[:, k].argsort(descending=True)[:count].tolist():
            if int((rivals <= logits[row, k]).sum()) / count >= share:
                expected.add(row)
    chosen = confident_images(logits, count, surer_than=share, samples=samples)
    assert chosen.tolist() == sorted(expected)


@pytest.mark.parametrize("samples", [None, torch.zeros(1, 3)])
def test_rejects_too_few_samples_to_compare_with(samples: Tensor | None) -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        confident_images(torch.zeros(4, 3), 2, surer_than=0.5, samples=samples)


def test_log_probabilities_of_samples(prior: StylePrior) -> None:
    found = sample_log_probabilities(TARGET, prior, 10, batch_size=4, rng=generator(5))
    latents = prior.truncated(1.0).sample(10, rng=generator(5))
    torch.testing.assert_close(found, TARGET(prior(latents)).log_softmax(1))


def test_no_pivots_where_samples_are_more_confident(prior: StylePrior) -> None:
    """Grey public images, of which the target is less sure than of any sample."""
    samples = sample_log_probabilities(TARGET, prior, 100, rng=generator(5))
    grey = torch.full((24, *SHAPE), 128, dtype=torch.uint8)
    unsure = TARGET(grey.float() / 255).log_softmax(1)[0]
    assert bool((samples.topk(4, dim=0).values > unsure).all())
    record = Record()
    made = adapted(
        prior, TARGET, "vanilla", public=grey, progress=record,
        steps=0, pivots=4, pivots_surer_than=0.1, pivots_tuning=5,
    )  # fmt: skip
    assert made.pivots is None and not record
    w = prior.sample(3, rng=generator(3))
    assert torch.equal(made(w), prior(w))


def test_rejects_too_many_pivots_before_the_training(prior: StylePrior) -> None:
    record = Record()
    with pytest.raises(ConfigError, match=r"adaptation.pivots"):
        adapted(prior, TARGET, "vanilla", pivots=25, progress=record)
    assert not record


@pytest.mark.parametrize("size", [8, 32])
def test_the_descent_starts_from_the_closest_sample(prior: StylePrior, size: int) -> None:
    """Large images are compared at 16x16."""
    public, small = PUBLIC[:5], nn.Identity()
    if size == 32:
        public, small = noise(6, size=32, channels=1), nn.AvgPool2d(2)
        prior = train_prior(public, training=replace(TRAINING, steps=1), rng=generator(1))
    samples = prior.sample(200, rng=generator(3))
    gaps = small(prior(samples))[:, None] - small(public.float() / 255)
    nearest = gaps.square().sum((2, 3, 4)).argmin(0)
    torch.testing.assert_close(found(prior, public, steps=0), samples[nearest])


@pytest.mark.parametrize("target", [deep(), TARGET], ids=["maps", "pixels"])
def test_projection_beats_the_closest_sample(prior: StylePrior, target: Any) -> None:
    images = own_images(prior, 8)
    before, after = (
        misses(prior, found(prior, images, steps=steps, target=target), images) for steps in (0, 60)
    )
    assert float(after.mean()) < 0.5 * float(before.mean())
    assert (after < before).float().mean() > 0.8


def test_each_image_is_inverted_independently(prior: StylePrior) -> None:
    images = own_images(prior, 7)
    whole = found(prior, images, steps=6)
    parts = found(prior, images, steps=6, batch_size=3)
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-3)


def test_loss_in_closed_form() -> None:
    """Pixels and maps, each in standard deviations of the public images, weigh the same."""
    loss = ReconstructionLoss(deep(), PUBLIC)
    spread = float((PUBLIC.float() / 255).std()) + 1e-3
    a, b = (torch.rand(4, *SHAPE, generator=generator(seed)) for seed in (1, 2))
    kinds = [(a / spread, b / spread), *zip(loss.maps.of(a), loss.maps.of(b), strict=True)]
    assert len(kinds) == 5
    total = sum(
        float((one[row] - other[row]).square().mean()) / 5
        for one, other in kinds
        for row in range(4)
    )
    assert float(loss(a, loss.features(b))) == pytest.approx(total, rel=1e-5)
    assert float(loss(a, loss.features(a))) == 0.0


def test_pivots_do_not_change_the_networks(prior: StylePrior, tmp_path: Path) -> None:
    without = adapted(prior, TARGET, "vanilla")
    made = adapted(prior, TARGET, "vanilla", pivots=2, pivots_surer_than=0, pivots_steps=3)
    assert without.pivots is None
    assert_same(made.average.state_dict(), without.average.state_dict())
    assert made.pivots is not None
    expected = len(confident_images(soft_labels(TARGET, PUBLIC), 2))
    assert made.pivots.shape == (expected, TRAINING.w_dim)
    made.save(tmp_path / "prior.safetensors")
    assert_equal(StylePrior.load(tmp_path / "prior.safetensors"), made)
    assert made.truncated(0.5).pivots is made.pivots
    moved = made.to("meta")
    assert moved.pivots is not None and moved.pivots.device.type == "meta"


def test_a_further_adaptation_drops_pivots(prior: StylePrior) -> None:
    """Pivots belong to the generator that they were found for."""
    pivoted = replace(prior, pivots=torch.zeros(2, TRAINING.w_dim))
    assert adapted(pivoted, TARGET, "vanilla", steps=1).pivots is None


def test_pivots_without_training_keep_the_prior(prior: StylePrior) -> None:
    assert not Adaptation(steps=0, pivots=1).keeps_prior and Adaptation(steps=0).keeps_prior
    record = Record()
    made = adapted(
        prior, TARGET, "vanilla", steps=0, pivots=4, pivots_surer_than=0, pivots_steps=3,
        images_at_once=4, progress=record,
    )  # fmt: skip
    w = prior.sample(3, rng=generator(2))
    assert torch.equal(made(w), prior(w)) and made.pivots is not None
    parts = -(-len(made.pivots) // 4)
    assert record == [(3 * i, 3 * parts) for i in range(1, parts + 1)]


def pool_of(prior: StylePrior, size: int) -> Tensor:
    return classified_pool(problem_of(TARGET, prior, seed=4), size, truncation=1.0).latents


def as_set(latents: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in latents.tolist()}


def test_pools_of_attacks_begin_with_pivots(prior: StylePrior) -> None:
    pivots = torch.randn(6, TRAINING.w_dim, generator=generator(5))
    plain, pool, few = (
        pool_of(replace(prior, pivots=given), size)
        for given, size in ((None, 20), (pivots, 20), (pivots, 8))
    )
    assert pool.shape == plain.shape and torch.equal(pool[6:], plain[6:])
    assert as_set(pool[:6]) == as_set(pivots)
    assert torch.equal(few[4:], pool_of(prior, 8)[4:])
    assert as_set(few[:4]) < as_set(pivots)


def test_pivots_of_a_prior_with_a_cutoff_are_for_all_layers(prior: StylePrior) -> None:
    pivots = torch.randn(2, TRAINING.w_dim, generator=generator(5))
    given = replace(prior, pivots=pivots, psi=0.5, cutoff=1)

    class Cut(StylePrior):
        def truncated(self, psi: float, cutoff: int | None = None) -> StylePrior:
            return given

    latents = pool_of(Cut(**vars(given)), 6)
    assert latents.shape == (6, prior.average.num_ws, TRAINING.w_dim)
    for layer in range(prior.average.num_ws):
        assert as_set(latents[:2, layer]) == as_set(pivots)


def test_rejects_pivots_of_another_width(prior: StylePrior, tmp_path: Path) -> None:
    file = tmp_path / "prior.safetensors"
    replace(prior, pivots=torch.zeros(2, 3)).save(file)
    with pytest.raises(DataError, match=r"not a prior .*pivots of the shape \(2, 3\)"):
        StylePrior.load(file)
