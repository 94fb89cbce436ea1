"""Flags: against loops and SciPy, rates of false alarms by simulation, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from inversight.core.errors import ConfigError, InputError
from inversight.risk import benjamini_hochberg, calibrate, check_embedding, smallest_possible
from inversight.risk.calibration import UnitValues, class_scales, simes
from tests.refusals import refused
from tests.risk.examples import Distances, bursts, normal_score, null, p_values_by_loops

SIMULATIONS = 50


def leaky(seed: int = 0) -> tuple[Distances, Distances]:
    """Return private and holdout distances; half of the private images leaked."""
    (ours, labels), theirs = null(seed, 8, 10, 20)
    ours[:40] *= 1e-3
    return (ours, labels), theirs


def of_different_sizes() -> tuple[Distances, Distances]:
    rng = np.random.default_rng(0)
    ours = rng.gamma(2.0, size=12), rng.integers(0, 3, 12)
    return ours, (rng.gamma(2.0, size=20), np.repeat([0, 1, 2], [2, 7, 11]))


@pytest.mark.parametrize(
    "sets", [null(3, 1, 4, 9), null(3, 3, 5, 4), null(3, 6, 1, 2), of_different_sizes()]
)
def test_p_values_equal_a_loop(sets: tuple[Distances, Distances]) -> None:
    found = calibrate(*sets).per_sample["p_value"]
    np.testing.assert_allclose(found.numpy(), p_values_by_loops(*sets), rtol=1e-12)


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=30))
def test_q_values_equal_scipy(p: list[float]) -> None:
    found = benjamini_hochberg(torch.tensor(p, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), stats.false_discovery_control(p), rtol=1e-12)


@given(st.integers(1, 2000), st.integers(9, 3000), st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.5]))
def test_smallest_number_of_images_at_the_smallest_p_value_that_are_flagged(
    images: int, unseen: int, fdr: float
) -> None:
    k = smallest_possible(images, unseen, fdr)
    if k > images:
        assert 1 / (unseen + 1) > fdr
        return

    for count in (k, k - 1) if k > 1 else (k,):
        p = torch.ones(images, dtype=torch.float64)
        p[:count] = 1 / (unseen + 1)
        assert bool((benjamini_hochberg(p) <= fdr * (1 + 1e-12)).any()) == (count == k)


@pytest.mark.parametrize("shape", ["normal", "skewed", "heavy"])
@pytest.mark.parametrize(
    ("classes", "private", "holdout"),
    [(10, 5, 5), (20, 5, 5), (10, 10, 10), (5, 20, 20), (10, 50, 50), (10, 2, 50), (1, 2, 50)],
)
def test_without_leakage_false_alarms_stay_below_the_rate(
    classes: int, private: int, holdout: int, shape: str
) -> None:
    sets = [null(seed, classes, private, holdout, shape) for seed in range(SIMULATIONS)]
    found = [calibrate(*one).per_sample for one in sets]
    # 0.1 and twice the standard error of the simulation.
    alarms = sum(bool(one["flagged"].any()) for one in found)
    assert alarms / SIMULATIONS <= 0.1 + 2 * (0.09 / SIMULATIONS) ** 0.5
    together = torch.cat([one["p_value"] for one in found])
    for level in (0.01, 0.02, 0.05, 0.1, 0.2):
        share = float((together <= level).double().mean())
        # Images of an audit share a holdout, so their number counts for less than it is.
        error = (level / (SIMULATIONS * classes * min(private, holdout))) ** 0.5
        assert share <= level + 3 * error, level


@pytest.mark.parametrize(("classes", "holdout"), [(20, 5), (10, 10), (4, 50)])
def test_finds_leaked_images_with_few_false_alarms(classes: int, holdout: int) -> None:
    recall, wrong = [], []
    for seed in range(SIMULATIONS):
        (ours, labels), theirs = null(seed, classes, holdout, holdout)
        leaked = np.random.default_rng(seed).random(len(ours)) < 0.2
        found = calibrate((np.where(leaked, 1e-3 * ours, ours), labels), theirs)
        flagged = found.per_sample["flagged"].numpy()
        recall.append((flagged & leaked).sum() / leaked.sum())
        wrong.append((flagged & ~leaked).sum() / max(1, flagged.sum()))
    assert np.mean(recall) > 0.95
    assert np.mean(wrong) <= 0.1


def test_summary_agrees_with_the_columns() -> None:
    found = calibrate(*leaky(), fdr=0.05)
    flags = found.per_sample["flagged"]
    summary = found.summary["flagged"]
    assert 0 < summary.extra["count"] == int(flags.sum())
    assert summary.value == pytest.approx(float(flags.double().mean()))
    assert summary.extra["smallest_possible"] == int(np.ceil(80 / (0.05 * 161)))
    assert (summary.extra["private_images"], summary.extra["holdout_images"]) == (80, 160)
    assert (found.per_sample["q_value"] <= 0.05).equal(flags)
    assert flags[:40].double().mean() > flags[40:].double().mean()


def test_higher_rate_flags_more() -> None:
    found = [calibrate(*null(1, 8, 10, 20), fdr=fdr).per_sample for fdr in (0.1, 0.5, 0.9, 0.999)]
    counts = [int(one["flagged"].sum()) for one in found]
    assert counts == sorted(counts)


def test_units_row_order_and_numbers_of_classes_do_not_matter() -> None:
    (x, a), (y, b) = leaky()
    expected = calibrate((x, a), (y, b))
    rng = np.random.default_rng(5)
    i, j, names = rng.permutation(len(x)), rng.permutation(len(y)), rng.permutation(8)
    found = calibrate((1e3 * x[i], names[a[i]]), (1e3 * y[j], names[b[j]]))
    assert found.summary == expected.summary
    for key, column in expected.per_sample.items():
        torch.testing.assert_close(found.per_sample[key], column[torch.from_numpy(i)])


def test_p_values_grow_with_the_distance() -> None:
    _, theirs = null(0, 3, 1, 12)
    distances = np.geomspace(1e-3, 10, 50)
    for label in range(3):
        found = calibrate((distances, np.full(50, label)), theirs).per_sample["p_value"]
        assert bool((found.diff() >= 0).all())
        assert found[0] == pytest.approx(1 / 37) and found[-1] == 1.0


def test_leaves_out_and_counts_images_that_cannot_be_tested() -> None:
    """Without a reconstruction of the class (NaN), or with one holdout image of it."""
    (x, a), (y, b) = leaky()
    expected = calibrate((x, a), (y, b))
    more = np.concatenate([x, [0.1, np.nan, 0.1]]), np.concatenate([a, [8, 9, 10]])
    held = np.concatenate([y, [0.2, np.nan, np.nan]]), np.concatenate([b, [8, 9, 9]])
    found = calibrate(more, held)
    for key in ("p_value", "q_value"):
        torch.testing.assert_close(found.per_sample[key][:80], expected.per_sample[key])
        assert bool(found.per_sample[key][80:].isnan().all())
    assert not found.per_sample["flagged"][80:].any()
    assert found.summary["flagged"].extra["not_judged"] == 3
    assert found.summary["flagged"].value == expected.summary["flagged"].value


@pytest.mark.parametrize(
    ("sets", "fdr", "reason"),
    [
        (null(0, 4, 3, 2), 0.1, "at least 9 holdout images .* found 8"),
        (null(0, 1, 3, 8), 0.5, "at least 9 holdout images .* found 8"),
        (null(0, 9, 3, 2), 0.05, "at least 19 holdout images .* found 18"),
        ((([0.1], [7]), null(0, 2, 1, 9)[1]), 0.1, "no private image"),
        (null(0, 1, 3, 9), 0.1, "None"),
        (null(0, 10, 3, 2), 0.05, "None"),
    ],
)
def test_has_a_reason_instead_of_a_value_with_too_few_images(
    sets: Any, fdr: float, reason: str
) -> None:
    found = calibrate(*sets, fdr=fdr)
    summary = found.summary["flagged"]
    assert re.search(reason, str(summary.reason))
    assert (summary.value is None) == (reason != "None")
    assert bool(found.per_sample["p_value"].isnan().all()) == (reason != "None")


@pytest.mark.parametrize("fdr", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_rejects_rates_outside_0_to_1(fdr: float) -> None:
    with pytest.raises(ConfigError, match="fdr: expected a rate between 0 and 1"):
        calibrate(*leaky(), fdr=fdr)


@pytest.mark.parametrize(
    ("distances", "labels", "message"),
    [
        ([0.1, 0.2], [0], "as many integer labels"),
        ([[0.1]], [[0]], "as many integer labels"),
        ([0.1], [0.0], "as many integer labels"),
        ([-0.1], [0], "finite distances of 0 or more"),
        ([float("inf")], [0], "finite distances of 0 or more"),
    ],
)
def test_rejects_what_is_no_distance_or_label(distances: Any, labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibrate((distances, labels), leaky()[1])


def test_rejects_an_embedding_that_has_seen_the_private_images() -> None:
    with pytest.raises(ConfigError, match="give --embedding pixel, public, lpips-vgg"):
        check_embedding("evaluator")
    for name in ("pixel", "public", "lpips-vgg", "inception", "package.module:Class"):
        check_embedding(name)


def drawn(seed: int, n: int) -> UnitValues:
    return UnitValues.of(torch.from_numpy(np.random.default_rng(seed).normal(size=n)))


def changed(known: UnitValues, scale: float, shift: float) -> UnitValues:
    return UnitValues.of(known.values * scale + shift)


def test_scale_of_a_single_class_comes_from_its_own_images() -> None:
    measure = class_scales({0: drawn(0, 6)})[0]
    y = drawn(0, 6).values
    others = torch.stack([torch.cat([y[:k], y[k + 1 :]]) for k in range(6)])
    torch.testing.assert_close(measure.centre, others.mean(1))
    torch.testing.assert_close(measure.scale, others.std(1) * (1 + 1 / 5) ** 0.5)
    assert measure.freedom == 4


def test_scores_equal_a_loop() -> None:
    known = {0: drawn(0, 3), 1: changed(drawn(1, 5), 2, 1), 4: changed(drawn(2, 9), 0.1, 0)}
    for label, measure in class_scales(known).items():
        rest = [y.values for c, y in known.items() if c != label]
        pooled = sum(float(y.var()) * (len(y) - 1) for y in rest) / sum(len(y) - 1 for y in rest)
        y = known[label].values.tolist()
        found = measure.scores(torch.tensor([[0.3], [-2.0]], dtype=torch.float64))
        for k in range(len(y)):
            for row, value in enumerate((0.3, -2.0)):
                expected = normal_score(value, y[:k] + y[k + 1 :], pooled, 2.0)
                assert float(found[row, k]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [4, 6, 20])
def test_scores_are_normal_scores_of_students_t(n: int) -> None:
    """Wallace's approximation against the quantiles themselves."""
    measure = class_scales({0: drawn(n, n)})[0]
    away = torch.linspace(-8, 8, 33, dtype=torch.float64)[:, None]
    found = measure.scores(measure.centre + away * measure.scale)[:, 0]
    expected = stats.norm.ppf(stats.t.cdf(away[:, 0].numpy(), measure.freedom))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0.03, atol=0.01)


def test_shifting_one_class_and_scaling_all_change_no_score() -> None:
    known = {0: drawn(0, 4), 1: drawn(1, 7)}
    moved = {0: changed(known[0], 3, 15), 1: changed(known[1], 3, -6)}
    for label in known:
        a = class_scales(known)[label].of_own(known[label])
        b = class_scales(moved)[label].of_own(moved[label])
        torch.testing.assert_close(a, b)


def test_class_with_many_images_has_its_own_spread() -> None:
    known = {0: drawn(0, 500), 1: changed(drawn(1, 500), 3, 0)}
    for label, measure in class_scales(known).items():
        assert float(measure.of_own(known[label]).std()) == pytest.approx(1.0, abs=0.05), label


@pytest.mark.parametrize(
    ("sizes", "scaled"), [([1, 2], []), ([2], []), ([3], [0]), ([1, 2, 3], [1, 2])]
)
def test_classes_of_too_few_images_have_no_scale(sizes: list[int], scaled: list[int]) -> None:
    assert list(class_scales({i: drawn(i, n) for i, n in enumerate(sizes)})) == scaled


def test_equal_images_have_infinite_scores_for_all_others() -> None:
    measure = class_scales({0: UnitValues.of(torch.ones(4, dtype=torch.float64))})[0]
    found = measure.scores(torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64))
    assert found[:, 0].tolist() == [-float("inf"), 0.0, float("inf")]


# Units: images that count as one


def copied(sets: Distances, seed: int) -> tuple[Distances, Tensor]:
    """Return each image one to four times, in random order, and which image each is a copy of."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.repeat(np.arange(len(sets[0])), rng.integers(1, 5, len(sets[0]))))
    return (sets[0][rows], sets[1][rows]), torch.from_numpy(rows)


@pytest.mark.parametrize("sets", [leaky(), null(3, 6, 1, 2), of_different_sizes()])
def test_units_of_one_image_change_nothing(sets: tuple[Distances, Distances]) -> None:
    expected = calibrate(*sets)
    numbers = [torch.randperm(len(x), generator=torch.Generator().manual_seed(0)) for x, _ in sets]
    found = calibrate(*sets, units=(numbers[0], numbers[1]))
    assert found.summary == expected.summary
    for key, column in expected.per_sample.items():
        assert column.equal(found.per_sample[key])


@pytest.mark.parametrize("sets", [leaky(), null(3, 6, 3, 4), of_different_sizes()])
def test_copies_that_are_one_unit_count_as_their_image(sets: tuple[Distances, Distances]) -> None:
    expected = calibrate(*sets)
    (private, own), (holdout, other) = (copied(one, seed) for seed, one in enumerate(sets))
    found = calibrate(private, holdout, units=(own + 100, other))
    for key, column in expected.per_sample.items():
        torch.testing.assert_close(found.per_sample[key], column[own], rtol=1e-9, atol=0)
    a, b = found.summary["flagged"].extra, expected.summary["flagged"].extra
    assert (a["private_units"], a["holdout_units"]) == (b["private_images"], b["holdout_images"])
    assert (a["private_images"], a["holdout_images"]) == (len(own), len(other))
    assert a["smallest_possible"] == b["smallest_possible"]
    assert a["count"] == int(expected.per_sample["flagged"][own].sum())


def test_scale_leaves_whole_units_out() -> None:
    values = torch.tensor([0.1, 0.5, 0.9, -1.0, 2.0, 2.2], dtype=torch.float64)
    known = UnitValues.of(values, torch.tensor([4, 4, 4, 7, 1, 1]))
    scale = class_scales({0: known})[0]
    units = [[-1.0], [0.1, 0.5, 0.9], [2.0, 2.2]]  # in the order of their means
    for k in range(3):
        rest = [unit for i, unit in enumerate(units) if i != k]
        centre = np.mean([np.mean(unit) for unit in rest])
        variance = sum(np.mean([(x - centre) ** 2 for x in unit]) for unit in rest)
        assert float(scale.centre[k]) == pytest.approx(centre)
        assert float(scale.scale[k]) == pytest.approx((variance * 1.5) ** 0.5)
    assert scale.freedom == 1


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(1e-6, 1.0)), min_size=1, max_size=20))
def test_p_value_of_a_unit_equals_a_loop(rows: list[tuple[int, float]]) -> None:
    _, unit = torch.tensor([u for u, _ in rows]).unique(return_inverse=True)
    found = simes(torch.tensor([p for _, p in rows], dtype=torch.float64), unit)
    for k, p in enumerate(found.tolist()):
        own = sorted(value for row, (_, value) in enumerate(rows) if unit[row] == k)
        assert p == pytest.approx(min(len(own) * v / (i + 1) for i, v in enumerate(own)))


@pytest.mark.parametrize(
    ("private", "holdout", "within"),
    [
        ((10, 5), (10, 5), 0.02),
        ((5, 5), (50, 5), 0.02),
        ((5, 1), (50, 5), 0.9),
        ((5, 9), (50, 2), 0.9),
    ],
)
def test_without_leakage_bursts_raise_no_false_alarms(
    private: tuple[int, int], holdout: tuple[int, int], within: float
) -> None:
    """Near-copies and unlike images of one person, more in a private unit than in a holdout unit or fewer."""
    alarms = np.zeros(2)
    for seed in range(SIMULATIONS):
        sets, units = bursts(seed, 10, private, holdout, within)
        found = [calibrate(*sets, units=units), calibrate(*sets)]
        alarms += [bool(one.per_sample["flagged"].any()) for one in found]
    assert alarms[0] / SIMULATIONS <= 0.1 + 2 * (0.09 / SIMULATIONS) ** 0.5
    if within < 0.1 and private == holdout:
        assert alarms[1] / SIMULATIONS > 0.25


def test_finds_all_images_of_a_unit_that_leaked() -> None:
    ((x, a), theirs), units = bursts(0, 10, (20, 5), (20, 5), 0.02)
    leaked = (units[0] % 5 == 0).numpy()
    found = calibrate((np.where(leaked, 1e-3 * x, x), a), theirs, units=units)
    assert found.per_sample["flagged"].numpy()[leaked].all()
    assert found.per_sample["flagged"].numpy()[~leaked].mean() < 0.05
    # One image alone leaked of each of a third of the units.
    alone = np.arange(len(x)) % 15 == 0
    found = calibrate((np.where(alone, 1e-3 * x, x), a), theirs, units=units)
    flagged = found.per_sample["flagged"].numpy()
    assert flagged[np.isin(units[0].numpy(), units[0].numpy()[alone])].all()


def test_row_order_of_units_does_not_matter() -> None:
    ((x, a), (y, b)), (u, v) = bursts(1, 6, (4, 3), (9, 2), 0.3)
    x[:24] *= 1e-3
    expected = calibrate((x, a), (y, b), units=(u, v))
    i, j = (torch.randperm(len(z), generator=torch.Generator().manual_seed(2)) for z in (x, y))
    found = calibrate((x[i], a[i]), (y[j], b[j]), units=(-u[i], v[j] * 7))
    assert found.summary == expected.summary and found.per_sample["flagged"].any()
    for key, column in expected.per_sample.items():
        torch.testing.assert_close(found.per_sample[key], column[i], rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (torch.arange(79), "private units: expected 80 integers, one for each image"),
        (torch.arange(80.0), "and type torch.float32"),
        (torch.arange(80) // 20, "of one class, found classes 0 and 1 in unit 0"),
    ],
)
def test_rejects_what_are_no_units(units: Tensor, message: str) -> None:
    with refused(message):
        calibrate(*leaky(), units=(units, torch.arange(160)))


def test_too_few_units_are_said_to_be_counted() -> None:
    sets, units = bursts(0, 2, (4, 5), (4, 5), 0.02)
    reason = str(calibrate(*sets, units=units).summary["flagged"].reason)
    assert "at least 9 holdout images" in reason and "found 8" in reason
    assert "groups and near-copies count as one" in reason
