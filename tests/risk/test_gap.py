"""The leakage gap: against a loop, about 0 without leakage whatever the sizes, growing with it."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from inversight.core.errors import InputError
from inversight.risk import leakage_gap
from inversight.scores.result import Summary
from tests.refusals import refused
from tests.scores.build import features, shuffled

Labelled = tuple[Tensor, Tensor]


def drawn(rng: torch.Generator, counts: list[int]) -> Labelled:
    """Return normal features of 16 dimensions; class c is spread 1 + c / 2 times as widely."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return torch.randn(len(labels), 16, generator=rng) * (1 + labels[:, None] / 2), labels


def example(
    seed: int, private: list[int], holdout: list[int], each: int = 20, leaked: float = 0.0
) -> tuple[Labelled, Labelled, Labelled]:
    """``leaked``: how far, from 0 to 1, every fourth reconstruction is moved to a private image."""
    rng = torch.Generator().manual_seed(seed)
    ours, theirs, made = (drawn(rng, n) for n in (private, holdout, [each] * len(private)))
    for label in range(len(private)):
        own = ours[0][ours[1] == label]
        rows = (made[1] == label).nonzero().squeeze(1)[: min(each, len(own)) : 4]
        made[0][rows] += leaked * (own[: len(rows)] - made[0][rows])
    return ours, theirs, made


def more(given: Labelled, *labels: int) -> Labelled:
    """Return ``given`` with an image at the origin for each label."""
    extra = torch.zeros(len(labels), given[0].shape[1])
    return torch.cat([given[0], extra]), torch.cat([given[1], torch.tensor(labels)])


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


def assert_same(a: Summary, b: Summary) -> None:
    for x, y in zip((a.value, a.low, a.high), (b.value, b.low, b.high), strict=True):
        assert x == pytest.approx(y, rel=1e-9)
    assert a.extra == pytest.approx(dict(b.extra), rel=1e-9)


@pytest.mark.parametrize(("seed", "private", "holdout"), [(0, [4, 6, 1], [5, 2, 3]), (1, [3], [8])])
def test_equals_a_loop(seed: int, private: list[int], holdout: list[int]) -> None:
    sets = example(seed, private, holdout, each=7, leaked=0.5)
    found = leakage_gap(*sets)
    assert found.value == pytest.approx(by_loops(*sets), rel=1e-9)
    assert found.extra["private"] - found.extra["holdout"] == pytest.approx(found.value)


@pytest.mark.parametrize(
    ("private", "holdout"),
    [([10] * 6, [10] * 6), ([4] * 6, [40] * 6), ([40] * 6, [4] * 6), ([5, 30] * 3, [30, 5] * 3)],
)
def test_without_leakage_gap_is_about_0_and_p_values_uniform(
    private: list[int], holdout: list[int]
) -> None:
    found = [leakage_gap(*example(s, private, holdout), bootstrap=99) for s in range(40)]
    gaps = np.array([f.value for f in found])
    assert abs(gaps.mean()) < 3 * gaps.std() / np.sqrt(len(gaps))
    p = np.array([f.extra["p_value"] for f in found])
    for level in (0.1, 0.3, 0.6):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / len(p))


def test_grows_with_leakage() -> None:
    sets = [[example(s, [12] * 4, [9] * 4, leaked=x) for s in range(8)] for x in (0, 0.4, 0.6, 0.9)]
    found = [np.mean([leakage_gap(*one, bootstrap=0).value for one in same]) for same in sets]
    assert found == sorted(found) and found[-1] > 10 * abs(found[0])


def test_clear_leak_has_the_smallest_p_value_and_an_interval_above_0() -> None:
    found = leakage_gap(*example(0, [12] * 4, [9] * 4, leaked=0.9))
    assert found.low is not None and found.low > 0
    assert found.extra["p_value"] == pytest.approx(1 / 1001)


def test_copies_of_private_images_are_credited_to_them_alone() -> None:
    ours, theirs, _ = example(0, [5, 5], [5, 5])
    found = leakage_gap(ours, theirs, ours)
    assert found.extra["private"] == pytest.approx(1e6) and found.extra["holdout"] == 0.0


def test_depends_on_the_seed_and_not_on_row_order() -> None:
    drawn_sets = zip(example(2, [6, 9], [7, 4], leaked=0.4), "phr", strict=True)
    sets = [features(*s, prefix=p) for s, p in drawn_sets]
    found = leakage_gap(*sets)
    assert_same(found, leakage_gap(*(shuffled(s, i)[0] for i, s in enumerate(sets))))
    other = leakage_gap(*sets, rng=torch.Generator().manual_seed(7))
    assert other.value == found.value and other.low != found.low


@pytest.mark.parametrize(
    ("private", "holdout", "winner"), [("a", "b", 1e6), ("b", "a", 0.0), ("a", "a", 0.0)]
)
def test_equal_distances_go_to_the_first_id_and_to_the_holdout_if_ids_are_equal(
    private: str, holdout: str, winner: float
) -> None:
    ours, theirs = (features([[0.0]], ids=[name]) for name in (private, holdout))
    found = leakage_gap(ours, theirs, features([[0.0]]))
    assert found.extra["private"] == winner
    assert found.extra["private"] + found.extra["holdout"] == pytest.approx(1e6)


def test_leaves_out_classes_without_holdout_or_reconstructions() -> None:
    ours, theirs, made = example(0, [4, 4], [5, 5])
    # Class 2 has no holdout image, class 3 no reconstruction.
    sets = more(ours, 2, 3), more(theirs, 3), more(made, 2)
    assert_same(leakage_gap(ours, theirs, made), leakage_gap(*sets))
    alone = leakage_gap(*((s[0][s[1] >= 2], s[1][s[1] >= 2]) for s in sets))
    assert alone.value is None and "no class" in str(alone.reason)


def test_single_images_have_a_gap_and_no_interval() -> None:
    found = leakage_gap(*example(0, [1, 1], [1, 1], leaked=0.9))
    assert found.value is not None and found.low is None


def test_rejects_a_holdout_in_another_embedding() -> None:
    ours, theirs, made = example(0, [4], [4])
    with pytest.raises(InputError, match="as holdout has"):
        leakage_gap(ours, (theirs[0][:, :5], theirs[1]), made)


def test_units_of_one_image_change_nothing() -> None:
    sets = example(1, [6, 3], [4, 7], leaked=0.4)
    expected = leakage_gap(*sets, bootstrap=99)
    assert (
        leakage_gap(*sets, units=(torch.arange(9) + 5, torch.arange(11)), bootstrap=99) == expected
    )


def scores_by_loops(private: Labelled, holdout: Labelled, made: Labelled) -> np.ndarray:
    """Scores of the images of one class, private ones first."""
    both = torch.cat([private[0], holdout[0]]).double()
    distances = (made[0].double()[:, None] - both).square().sum(2).numpy()
    score, owner = np.zeros(len(both)), distances.argmin(1)
    for i, near in zip(owner, distances.min(1), strict=True):
        score[i] = max(score[i], 1 / near)
    return score


def test_units_are_exchanged_whole() -> None:
    """Against all 35 exchanges of three units with four."""
    sets = example(3, [7], [8], leaked=0.3)
    units = torch.tensor([0, 0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
    found = leakage_gap(*sets, units=units, bootstrap=4000)
    alone = leakage_gap(*sets, bootstrap=4000)
    assert found.value == pytest.approx(alone.value, rel=1e-12)
    assert (found.extra["private_units"], found.extra["holdout_units"]) == (3, 4)
    score = scores_by_loops(*sets)
    unit = np.concatenate([units[0].numpy(), 3 + units[1].numpy()])

    def gap(chosen: tuple[int, ...]) -> float:
        own = np.isin(unit, chosen)
        return float(score[own].mean() - score[~own].mean())

    gaps = [gap(chosen) for chosen in combinations(range(7), 3)]
    assert found.value == pytest.approx(gaps[0])
    exact = np.mean([g >= gaps[0] - 1e-9 for g in gaps])
    assert found.extra["p_value"] == pytest.approx(exact, abs=0.03)
    assert 0.05 < exact < 0.95


def in_bursts(given: Labelled, each: int, rng: torch.Generator) -> tuple[Labelled, Tensor]:
    """Return ``each`` near-copies of every image, and their units."""
    rows = torch.arange(len(given[0])).repeat_interleave(each)
    noise = 0.05 * torch.randn(len(rows), 16, generator=rng)
    return (given[0][rows] + noise, given[1][rows]), rows


def test_without_leakage_bursts_have_uniform_p_values_and_wider_intervals() -> None:
    p, width = [], []
    for seed in range(60):
        ours, theirs, made = example(seed, [6] * 4, [6] * 4)
        rng = torch.Generator().manual_seed(seed)
        (ours, own), (theirs, other) = in_bursts(ours, 5, rng), in_bursts(theirs, 5, rng)
        # Several reconstructions near to one image, so that its copies share them.
        made = in_bursts(made, 4, rng)[0]
        found = [
            leakage_gap(ours, theirs, made, units=units, bootstrap=99)
            for units in ((own, other), None)
        ]
        p.append([one.extra["p_value"] for one in found])
        width.append([one.high - one.low for one in found])
    for level in (0.05, 0.1, 0.3):
        assert (np.array(p)[:, 0] <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / 60)
    assert (np.array(p)[:, 1] <= 0.1).mean() > (np.array(p)[:, 0] <= 0.1).mean()
    assert np.mean(width, axis=0)[0] > 1.1 * np.mean(width, axis=0)[1]


def test_row_order_of_units_does_not_matter() -> None:
    drawn_sets = zip(example(2, [6, 9], [7, 4], leaked=0.4), "phr", strict=True)
    sets = [features(*s, prefix=p) for s, p in drawn_sets]
    units = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 8]), torch.arange(11) // 2 * 2
    units[1][6] = 100  # the seventh image is of class 0, the eighth of class 1
    found = leakage_gap(*sets, units=units)
    turned = [shuffled(s, i) for i, s in enumerate(sets)]
    own, other = (units[i][turned[i][1]] for i in range(2))
    assert_same(found, leakage_gap(*(one for one, _ in turned), units=(own, other)))


def test_rejects_units_of_two_classes() -> None:
    with refused("holdout units: expected the images of a unit to be of one class"):
        units = torch.arange(4), torch.zeros(4).long()
        leakage_gap(*example(0, [2, 2], [2, 2]), units=units)
