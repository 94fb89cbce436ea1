"""The leakage gap: against a loop, about 0 without leakage whatever the sizes, growing with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from inversight.core.errors import InputError
from inversight.risk import leakage_gap
from inversight.scores import ddcs
from inversight.scores.result import Summary
from tests.scores.build import features, shuffled

Labelled = tuple[Tensor, Tensor]


def drawn(
    rng: torch.Generator, counts: list[int], dimensions: int = 16, spread: float = 1.0
) -> Labelled:
    """Normal features; class c is spread 1 + c / 2 times as widely."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    values = torch.randn(len(labels), dimensions, generator=rng)
    return values * (1 + labels[:, None] / 2) * spread, labels


def example(
    seed: int, private: list[int], holdout: list[int], each: int = 20, leaked: float = 0.0
) -> tuple[Labelled, Labelled, Labelled]:
    """``leaked``: how far, from 0 to 1, every fourth reconstruction is moved to a private image."""
    rng = torch.Generator().manual_seed(seed)
    classes = len(private)
    ours, theirs = drawn(rng, private), drawn(rng, holdout)
    made = drawn(rng, [each] * classes)
    for label in range(classes):
        own = ours[0][ours[1] == label]
        rows = (made[1] == label).nonzero().squeeze(1)[: min(each, len(own)) : 4]
        made[0][rows] += leaked * (own[: len(rows)] - made[0][rows])
    return ours, theirs, made


def by_loops(private: Labelled, holdout: Labelled, made: Labelled) -> float:
    """Each reconstruction to its nearest image of either set; means of 1 / smallest distance."""
    total, images = 0.0, 0
    for label in set(private[1].tolist()) & set(holdout[1].tolist()) & set(made[1].tolist()):
        own, held, mine = (s[0][s[1] == label].double() for s in (private, holdout, made))
        both = torch.cat([own, held])
        best = [np.inf] * len(both)
        for r in mine:
            distances = [float((r - x).square().sum()) for x in both]
            i = int(np.argmin(distances))
            best[i] = min(best[i], distances[i])
        score = [1 / max(d, 1e-6) if np.isfinite(d) else 0.0 for d in best]
        total += sum(score[: len(own)]) - len(own) * float(np.mean(score[len(own) :]))
        images += len(own)
    return total / images


def test_it_equals_a_loop() -> None:
    for seed, private, holdout in ((0, [4, 6, 1], [5, 2, 3]), (1, [3], [8])):
        sets = example(seed, private, holdout, each=7, leaked=0.5)
        found = leakage_gap(*sets)
        assert found.value == pytest.approx(by_loops(*sets), rel=1e-9)
        assert found.extra["private"] - found.extra["holdout"] == pytest.approx(found.value)


@pytest.mark.parametrize(
    ("private", "holdout"),
    [([10] * 6, [10] * 6), ([4] * 6, [40] * 6), ([40] * 6, [4] * 6), ([5, 30] * 3, [30, 5] * 3)],
)
def test_without_leakage_it_is_about_0_and_chance_explains_it(
    private: list[int], holdout: list[int]
) -> None:
    found = [leakage_gap(*example(s, private, holdout), bootstrap=99) for s in range(60)]
    gaps = np.array([f.value for f in found])
    assert abs(gaps.mean()) < 3 * gaps.std() / np.sqrt(len(gaps))
    p = np.array([f.extra["p_value"] for f in found])
    for level in (0.1, 0.3, 0.6):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / len(p))
    # Scored each alone, the smaller set looks better recovered.
    if private[0] * 10 == holdout[0]:
        ours, theirs, made = example(0, private, holdout)
        alone = [ddcs(s, made, bootstrap=0).summary["ddcs_best"].value or 0 for s in (ours, theirs)]
        assert alone[0] > 1.5 * alone[1]


def test_it_grows_with_what_leaked() -> None:
    sets = [[example(s, [12] * 4, [9] * 4, leaked=x) for s in range(8)] for x in (0, 0.4, 0.6, 0.9)]
    found = [np.mean([leakage_gap(*one, bootstrap=0).value for one in same]) for same in sets]
    assert found == sorted(found) and found[-1] > 10 * abs(found[0])


def test_a_clear_leak_is_beyond_chance_and_its_interval_above_0() -> None:
    found = leakage_gap(*example(0, [12] * 4, [9] * 4, leaked=0.9))
    assert found.low is not None and found.low > 0
    assert found.extra["p_value"] == pytest.approx(1 / 1001)


def test_copies_of_private_images_are_credited_to_them_alone() -> None:
    ours, theirs, _ = example(0, [5, 5], [5, 5])
    found = leakage_gap(ours, theirs, ours)
    assert found.extra["private"] == pytest.approx(1e6) and found.extra["holdout"] == 0.0


def same(a: Summary, b: Summary) -> None:
    assert a.extra.keys() == b.extra.keys()
    pairs = [(a.value, b.value), (a.low, b.low), (a.high, b.high)]
    for x, y in [*pairs, *((v, b.extra[k]) for k, v in a.extra.items())]:
        assert x == pytest.approx(y, rel=1e-9)


def test_rows_may_come_in_any_order_and_the_seed_is_the_callers() -> None:
    sets = [
        features(*s, prefix=p)
        for s, p in zip(example(2, [6, 9], [7, 4], leaked=0.4), "phr", strict=True)
    ]
    found = leakage_gap(*sets)
    same(found, leakage_gap(*(shuffled(s, i)[0] for i, s in enumerate(sets))))
    other = leakage_gap(*sets, rng=torch.Generator().manual_seed(7))
    assert other.value == found.value and other.low != found.low


def test_equal_distances_go_to_the_id_that_sorts_first() -> None:
    """On either side; of one id on both, to the holdout's."""
    for ours, theirs, winner in (("a", "b", 1e6), ("b", "a", 0.0), ("a", "a", 0.0)):
        found = leakage_gap(
            features([[0.0]], ids=[ours]), features([[0.0]], ids=[theirs]), features([[0.0]])
        )
        assert found.extra["private"] == winner
        assert found.extra["private"] + found.extra["holdout"] == pytest.approx(1e6)


def test_classes_without_holdout_or_reconstructions_are_left_out() -> None:
    ours, theirs, made = example(0, [4, 4], [5, 5])
    expected = leakage_gap(ours, theirs, made)
    # Class 2 has no holdout image, class 3 no reconstruction.
    more = torch.cat([ours[0], torch.zeros(2, 16)]), torch.cat([ours[1], torch.tensor([2, 3])])
    held = torch.cat([theirs[0], torch.zeros(1, 16)]), torch.cat([theirs[1], torch.tensor([3])])
    drawn_more = torch.cat([made[0], torch.zeros(1, 16)]), torch.cat([made[1], torch.tensor([2])])
    same(expected, leakage_gap(more, held, drawn_more))
    alone = leakage_gap(
        (more[0][8:9], more[1][8:9]), held, (drawn_more[0][-1:], drawn_more[1][-1:])
    )
    assert alone.value is None and alone.reason is not None and "no class" in alone.reason


def test_single_images_have_a_gap_and_no_interval() -> None:
    found = leakage_gap(*example(0, [1, 1], [1, 1], leaked=0.9))
    assert found.value is not None and found.low is None


def test_another_embedding_of_the_holdout_is_refused() -> None:
    ours, theirs, made = example(0, [4], [4])
    with pytest.raises(InputError, match="as holdout has"):
        leakage_gap(ours, (theirs[0][:, :5], theirs[1]), made)
