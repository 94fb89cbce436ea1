from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import prdc as package
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inversight.scores import ScoreResult, prdc
from inversight.scores.coverage import MEASURES
from tests.draws import uniform
from tests.reference.prdc_loop import prdc_loop
from tests.scores.build import features, gaussian, interval, value


def values(result: ScoreResult) -> dict[str, float]:
    return {key: value(summary) for key, summary in result.summary.items()}


@pytest.mark.parametrize(("n", "m", "k"), [(50, 200, 3), (200, 50, 5), (30, 30, 1)])
def test_equals_the_published_package_class_by_class(n: int, m: int, k: int) -> None:
    private = gaussian(n, 6, classes=2)
    made = gaussian(m, 6, classes=2, seed=1, prefix="r", shift=0.3)
    expected = dict.fromkeys(MEASURES, 0.0)
    for label in range(2):
        sides = [side.flat()[side.labels == label].double().numpy() for side in (private, made)]
        with contextlib.redirect_stdout(io.StringIO()):
            found = package.compute_prdc(*sides, nearest_k=k)
        expected = {key: expected[key] + found[key] / 2 for key in MEASURES}
    assert values(prdc(private, made, k=k)) == pytest.approx(expected, rel=1e-12)


POINTS = st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=4, max_size=9)


@settings(max_examples=60, derandomize=True)
@given(POINTS, POINTS, st.integers(1, 3))
def test_equals_the_definition_for_points_on_the_rim(
    real: list[list[int]], fake: list[list[int]], k: int
) -> None:
    # Whole numbers far from 0 are exact features whose centred products round.
    found = prdc(features(torch.tensor(real) + 1000), features(torch.tensor(fake) + 1000), k=k)
    assert values(found) == pytest.approx(prdc_loop(real, fake, k))


def test_closed_form_on_a_line() -> None:
    # k = 1: every private radius is 1, so the balls are (-1, 1), (0, 2), (9, 11) and (10, 12).
    private = features([[0.0], [1.0], [10.0], [11.0]])
    result = prdc(private, features([[0.5], [0.7], [5.0]], prefix="r"), k=1)
    # The reconstructions' radii are 0.2, 0.2 and 4.3: only the last ball holds an image, at 1.
    expected = {"precision": 2 / 3, "density": 4 / 3, "coverage": 2 / 4, "recall": 1 / 4}
    assert values(result) == pytest.approx(expected)
    assert result.per_sample["coverage"].tolist() == [1.0, 1.0, 0.0, 0.0]


def test_small_classes_are_left_out_and_counted() -> None:
    # Class 0 has 4 on both sides (used), 1 has 3 private, 2 has 3 reconstructions, 3 none.
    private = replace(gaussian(15, 4), labels=torch.tensor([0] * 4 + [1] * 3 + [2] * 4 + [3] * 4))
    made = replace(gaussian(11, 4, seed=1), labels=torch.tensor([0] * 4 + [1] * 4 + [2] * 3))
    result = prdc(private, made)
    assert result.summary["coverage"].extra == {"k": 3, "classes_used": 1, "classes_left_out": 3}
    found = result.per_sample["coverage"]
    assert bool(found[4:].isnan().all()) and set(found[:4].tolist()) <= {0.0, 1.0}
    alone = prdc(private.select(torch.arange(4)), made.select(torch.arange(4)))
    assert values(result) == values(alone)


def test_no_class_left_gives_a_reason() -> None:
    for summary in prdc(gaussian(3, 4), gaussian(9, 4, seed=1)).summary.values():
        assert summary.value is None and summary.extra["classes_left_out"] == 1
        assert "more than 3 images" in str(summary.reason)


def test_classes_have_equal_weight() -> None:
    near = uniform(40, 2)
    missed = torch.eye(8)[:, :2] + torch.arange(8)[:, None]
    private = features(torch.cat([near, missed]), labels=[0] * 40 + [1] * 8)
    made = features(torch.cat([near, torch.full((4, 2), 99.0)]), labels=[0] * 40 + [1] * 4)
    assert values(prdc(private, made))["coverage"] == 0.5


def test_interval_of_coverage_is_that_of_a_fraction() -> None:
    """One class and many images: the normal interval of a fraction, for coverage and recall."""
    summary = prdc(gaussian(800, 3), gaussian(300, 3, seed=1), bootstrap=2000).summary
    for key in ("coverage", "recall"):
        fraction, (low, high) = value(summary[key]), interval(summary[key])
        half = 1.96 * (fraction * (1 - fraction) / 800) ** 0.5
        assert high - low == pytest.approx(2 * half, rel=0.15)
