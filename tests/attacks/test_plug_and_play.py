"""What attacks share with Plug & Play: the pool that they start from and the final selection."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import resized_crop

from inversight.attacks import PlugAndPlay, Reconstructions
from inversight.attacks.selection import classified_pool, crop_box
from inversight.core.seeding import generator
from inversight.models.target import Target
from tests.attacks.toy import LABELS, SIZE, FlatPrior, Nearest, problem_of, toy_target


@pytest.fixture
def module() -> Nearest:
    return Nearest()


@pytest.fixture
def target(module: Nearest) -> Target:
    return toy_target(module)


SMALL = PlugAndPlay(
    pool=60, candidates=8, steps=60, keep=3, crops=4, batch_size=16, learning_rate=0.05
)


def attack(target: Target, how: PlugAndPlay = SMALL, seed: int = 0) -> Reconstructions:
    return how.run(target, FlatPrior(), LABELS, rng=generator(seed))


def test_candidates_are_the_best_of_the_pool(target: Target) -> None:
    prior = FlatPrior()
    classified = classified_pool(problem_of(target, prior), 20, truncation=0.5)
    found = classified.latents[classified.best(LABELS, 8)]
    pool = prior.sample(20, rng=generator(0, "pool"))
    confidence = target(prior(pool)).softmax(1)
    for label in range(3):
        assert len(found[label].unique(dim=0)) == 8
        best = confidence[:, label].sort(descending=True).values[7]
        mine = target(prior(found[label])).softmax(1)[:, label]
        assert float(mine.min()) >= float(best) - 1e-6


def test_the_pool_is_classified_once_for_all_classes(target: Target, module: Nearest) -> None:
    attack(target)
    candidates = 3 * 8
    assert module.images == 60 + candidates * 60 + candidates * 4


def test_a_single_class(target: Target) -> None:
    found = SMALL.run(target, FlatPrior(), torch.tensor([2]), rng=generator(0))
    assert found.labels.tolist() == [2, 2, 2]


def robust(
    target: Target, w: Tensor, labels: Tensor, rng: torch.Generator, count: int = 4,
    flip: bool = True,
) -> Tensor:  # fmt: skip
    selection = PlugAndPlay(crops=count, crop_flip=flip, batch_size=16)
    return selection.robust_confidence(problem_of(target, FlatPrior()), w, labels, rng=rng)


def test_final_selection_is_the_mean_over_crops(target: Target) -> None:
    w = torch.randn(5, 2, generator=generator(0))
    labels = torch.tensor([0, 1, 2, 0, 1])
    found = robust(target, w, labels, generator(3))
    rng = generator(3)
    boxes = [crop_box(SIZE, SIZE, (0.5, 0.9), (0.8, 1.2), rng) for _ in range(4)]
    flips = torch.rand(4, generator=rng) < 0.5
    total = torch.zeros(5)
    for (top, left, h, w_), flip in zip(boxes, flips, strict=True):
        crop = resized_crop(FlatPrior()(w), top, left, h, w_, [SIZE, SIZE], antialias=True)
        crop = crop.flip(3) if flip else crop
        total += target(crop).softmax(1)[torch.arange(5), labels]
    torch.testing.assert_close(found, total / 4)


def test_without_flips_sides_are_not_swapped(target: Target) -> None:
    w, one = torch.tensor([[3.0, -3.0]]), torch.tensor([1])
    high = robust(target, w, one, generator(0), count=30, flip=False)
    low = robust(target, w.flip(1), one, generator(0), count=30, flip=False)
    assert not math.isclose(float(high), float(low), abs_tol=1e-3)


@pytest.mark.parametrize("seed", range(20))
def test_crops_stay_inside_and_keep_their_area(seed: int) -> None:
    top, left, h, w = crop_box(64, 64, (0.5, 0.9), (0.8, 1.2), generator(seed))
    assert 0 <= top <= 64 - h and 0 <= left <= 64 - w
    assert 0.5 - 0.03 <= h * w / 64**2 <= 0.9 + 0.03
    assert 0.75 <= w / h <= 1.27
