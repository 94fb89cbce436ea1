"""What attacks share with Plug & Play: the pool that they start from and the final selection."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import resized_crop

from inversight.attacks import PlugAndPlay
from inversight.attacks.selection import classified_pool, crop_box
from inversight.core.seeding import generator
from tests.attacks.toy import LABELS, SIZE, FlatPrior, Nearest, problem_of, toy_target

TARGET = toy_target(Nearest())


def test_candidates_are_the_best_of_the_pool() -> None:
    prior = FlatPrior()
    classified = classified_pool(problem_of(TARGET, prior), 20, truncation=0.5)
    found = classified.latents[classified.best(LABELS, 8)]
    pool = prior.sample(20, rng=generator(0, "pool"))
    confidence = TARGET(prior(pool)).softmax(1)
    for label in range(3):
        assert len(found[label].unique(dim=0)) == 8
        best = confidence[:, label].sort(descending=True).values[7]
        mine = TARGET(prior(found[label])).softmax(1)[:, label]
        assert float(mine.min()) >= float(best) - 1e-6


def robust(
    w: Tensor, labels: Tensor, rng: torch.Generator, count: int = 4, flip: bool = True
) -> Tensor:
    selection = PlugAndPlay(crops=count, crop_flip=flip, batch_size=16)
    return selection.robust_confidence(problem_of(TARGET, FlatPrior()), w, labels, rng=rng)


def test_final_selection_is_the_mean_over_crops() -> None:
    w = torch.randn(5, 2, generator=generator(0))
    labels = torch.tensor([0, 1, 2, 0, 1])
    found = robust(w, labels, generator(3))
    rng = generator(3)
    boxes = [crop_box(SIZE, SIZE, (0.5, 0.9), (0.8, 1.2), rng) for _ in range(4)]
    flips = torch.rand(4, generator=rng) < 0.5
    total = torch.zeros(5)
    for (top, left, h, w_), flip in zip(boxes, flips, strict=True):
        crop = resized_crop(FlatPrior()(w), top, left, h, w_, [SIZE, SIZE], antialias=True)
        crop = crop.flip(3) if flip else crop
        total += TARGET(crop).softmax(1)[torch.arange(5), labels]
    torch.testing.assert_close(found, total / 4)


def test_without_flips_sides_are_not_swapped() -> None:
    w, one = torch.tensor([[3.0, -3.0]]), torch.tensor([1])
    high = robust(w, one, generator(0), count=30, flip=False)
    low = robust(w.flip(1), one, generator(0), count=30, flip=False)
    assert not math.isclose(float(high), float(low), abs_tol=1e-3)


@pytest.mark.parametrize("seed", range(20))
def test_crops_stay_inside_and_keep_their_area(seed: int) -> None:
    top, left, h, w = crop_box(64, 64, (0.5, 0.9), (0.8, 1.2), generator(seed))
    assert 0 <= top <= 64 - h and 0 <= left <= 64 - w
    assert 0.5 - 0.03 <= h * w / 64**2 <= 0.9 + 0.03
    assert 0.75 <= w / h <= 1.27
