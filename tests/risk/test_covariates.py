"""Covariates: against loops and least squares, rates without leakage, and what they gain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from inversight.core.seeding import generator
from inversight.data import ImageSet, image_set
from inversight.embeddings.pixel import Pixel
from inversight.risk import calibrate, distance_gap, public_covariates
from inversight.risk.covariates import NEAREST, adjust
from tests.refusals import refused
from tests.risk.examples import SHAPES, Distances, bursts

SIMULATIONS = 40
Sides = tuple[tuple[Distances, Distances], tuple[Tensor, Tensor]]


def typical(seed: int, each: int, classes: int = 10, shape: str = "normal") -> Sides:
    """Return distances of either side without leakage, and covariates that explain four fifths of them."""
    rng = np.random.default_rng(seed)
    place, spread = rng.normal(size=classes), 0.3 * np.exp(0.5 * rng.normal(size=classes))
    labels = np.repeat(np.arange(classes), each)
    sets, given = [], []
    for _ in range(2):
        common, rest = rng.normal(size=len(labels)), SHAPES[shape](rng, (1, len(labels)))[0]
        log = place[labels] + spread[labels] * (0.8**0.5 * common + 0.2**0.5 * rest)
        sets.append((np.exp(log), labels))
        noisy = common[:, None] + 0.2 * rng.normal(size=(len(labels), 3))
        given.append(torch.from_numpy(noisy))
    return (sets[0], sets[1]), (given[0], given[1])


def with_leak(sides: Sides, seed: int, deviations: float) -> tuple[Distances, np.ndarray[Any, Any]]:
    """Return private distances with every fifth image nearer by ``deviations`` of its class, and which."""
    (near, labels), _ = sides[0]
    leaked = np.random.default_rng(seed).permutation(len(near)) % 5 == 0
    spread = np.array([np.log(near[labels == c]).std() for c in range(10)])[labels]
    return (np.where(leaked, near * np.exp(-deviations * spread), near), labels), leaked


def pictures(count: int, seed: int, name: str) -> ImageSet:
    pixels = torch.randint(0, 256, (count, 1, 4, 4), generator=generator(seed)).to(torch.uint8)
    return image_set(pixels, ["a"] * count, [f"a/{name}{i:02d}" for i in range(count)], ["a"])


@pytest.mark.parametrize("count", [3, 40])
def test_public_covariates_equal_a_loop(count: int) -> None:
    images, public = pictures(7, 0, "x"), pictures(count, 1, "y")
    found = public_covariates(images, public, Pixel((4, 4)), memory=2**20)
    for row, image in enumerate(images.images.double() / 255):
        errors = sorted(
            float((image - other).square().mean()) for other in public.images.double() / 255
        )
        expected = [np.log(np.mean(errors[:k])) for k in NEAREST]
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-6)
    order = torch.randperm(count, generator=generator(2))
    again = public_covariates(images, public.select(order), Pixel((4, 4)), memory=2**20)
    torch.testing.assert_close(again, found)


def test_residuals_are_those_of_least_squares_where_images_are_many() -> None:
    (private, holdout), given = typical(0, 200, classes=3)
    labels = torch.from_numpy(private[1]), torch.from_numpy(holdout[1])
    values = tuple(torch.from_numpy(np.log(side[0])) for side in (private, holdout))
    units = torch.arange(600), torch.arange(600)
    found = adjust((values[0], values[1]), labels, units, given)
    classes = np.eye(3)[np.concatenate([private[1], holdout[1]])]
    design = np.hstack([torch.cat(given).numpy(), classes])
    y = torch.cat(values).numpy()
    slopes = np.linalg.lstsq(design, y, rcond=None)[0][:3]
    rest = y - torch.cat(given).numpy() @ slopes
    joined = torch.cat([found.private, found.holdout]).numpy()
    for c in range(3):
        rows = classes[:, c] > 0
        a, b = (values[rows] - values[rows].mean() for values in (joined, rest))
        assert np.abs(a - b).max() < 0.1 * b.std()
    assert 0.6 < found.explained < 0.85


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_without_leakage_rates_hold(shape: str) -> None:
    alarms, p = 0, []
    for seed in range(SIMULATIONS):
        sets, given = typical(seed, 5, shape=shape)
        alarms += bool(calibrate(*sets, covariates=given).per_sample["flagged"].any())
        p.append(distance_gap(*sets, covariates=given, bootstrap=99).extra["p_value"])
    assert alarms / SIMULATIONS <= 0.1 + 2 * (0.09 / SIMULATIONS) ** 0.5
    for level in (0.1, 0.3, 0.6):
        bound = level + 3 * np.sqrt(level * (1 - level) / SIMULATIONS)
        assert np.mean(np.array(p) <= level) <= bound


def test_covariates_and_the_mean_of_logs_find_what_was_missed() -> None:
    recall: dict[str, list[float]] = {"with": [], "without": []}
    small = []
    for seed in range(10):
        sides = typical(seed, 10)
        private, leaked = with_leak(sides, seed, 3.0)
        for name, given in (("with", sides[1]), ("without", None)):
            flagged = calibrate(private, sides[0][1], covariates=given).per_sample["flagged"]
            recall[name].append(float(flagged.numpy()[leaked].mean()))
        gap = distance_gap(private, sides[0][1], covariates=sides[1])
        assert gap.low is not None and gap.value is not None
        assert 0 < gap.low < gap.value
        small.append(gap.extra["p_value"])
    assert np.mean(recall["with"]) > np.mean(recall["without"]) + 0.3
    assert max(small) <= 0.05


def test_distance_gap_is_the_difference_in_deviations_of_the_class() -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros(4000, dtype=np.int64)
    sets = [np.exp(0.4 * rng.normal(size=4000) - shift) for shift in (0.2, 0.0)]
    found = distance_gap((sets[0], labels), (sets[1], labels), bootstrap=99)
    assert found.value == pytest.approx(0.2 / 0.4, abs=0.06)
    assert found.extra["p_value"] == pytest.approx(0.01)


def test_units_count_once_in_the_distance_gap() -> None:
    p = []
    for seed in range(SIMULATIONS):
        sets, units = bursts(seed, 5, (3, 5), (3, 5), 0.02)
        found = distance_gap(*sets, units=units, bootstrap=99)
        assert (found.extra["private_units"], found.extra["holdout_units"]) == (15, 15)
        p.append(found.extra["p_value"])
    assert np.mean(np.array(p) <= 0.1) <= 0.1 + 3 * np.sqrt(0.09 / SIMULATIONS)


def test_same_covariate_for_all_changes_nothing_and_classes_apart_are_left_out() -> None:
    sets, given = typical(1, 5)
    constant = torch.full((50, 2), 3.0), torch.full((50, 2), 3.0)
    expected, found = calibrate(*sets), calibrate(*sets, covariates=constant)
    assert torch.equal(found.per_sample["p_value"], expected.per_sample["p_value"])
    assert found.summary["flagged"].extra["explained"] == 0.0
    (near, labels), holdout = sets
    assert distance_gap((near, labels + 20), holdout, covariates=given).value is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((torch.zeros(49, 3), torch.zeros(50, 3)), "private covariates: expected one row for each"),
        ((torch.zeros(50, 3), torch.zeros(50)), "holdout covariates: expected one row for each"),
        ((torch.zeros(50, 3), torch.zeros(50, 2)), "as many of private as of holdout"),
        ((torch.zeros(50, 1), torch.full((50, 1), np.nan)), "holdout covariates: expected finite"),
    ],
)
def test_refuses_covariates_that_do_not_fit(given: tuple[Tensor, Tensor], message: str) -> None:
    with refused(message):
        calibrate(*typical(0, 5)[0], covariates=given)
