from __future__ import annotations

import pytest
import torch
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from inversight.scores import kernel_distance, kid
from tests.scores.build import gaussian, shuffled


def value(*sides: object) -> float:
    found = kernel_distance(*sides).summary["kid"].value  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize(("n", "dimensions"), [(2, 3), (50, 12), (130, 40)])
def test_equals_torch_fidelity_on_one_subset(n: int, dimensions: int) -> None:
    a, b = gaussian(n, dimensions), gaussian(n, dimensions, seed=1, shift=0.2)
    expected = kid_features_to_metric(
        a.flat().double(), b.flat().double(), kid_subsets=1, kid_subset_size=n, verbose=False
    )
    assert value(a, b) == pytest.approx(expected[KEY_METRIC_KID_MEAN], rel=1e-9, abs=1e-12)


def test_the_mean_over_subsets_is_its_expectation() -> None:
    a, b = gaussian(60, 5), gaussian(90, 5, seed=1, shift=0.5)
    subsets = kid_features_to_metric(
        a.flat().double(), b.flat().double(), kid_subsets=3000, kid_subset_size=30, verbose=False
    )
    assert value(a, b) == pytest.approx(subsets[KEY_METRIC_KID_MEAN], rel=0.03)


def test_direction_identity_and_order(monkeypatch: pytest.MonkeyPatch) -> None:
    a = gaussian(80, 6)
    near, far = (value(a, gaussian(80, 6, seed=1, shift=s)) for s in (0.1, 2.0))
    assert near < far
    # Unbiased: a set against itself lies below 0, since it leaves its own diagonal out on one side.
    assert -0.5 < value(a, a) <= 0.0
    other = shuffled(gaussian(70, 6, seed=2))[0]
    assert value(shuffled(a)[0], other) == pytest.approx(value(a, other), rel=1e-12)
    monkeypatch.setattr(kid, "_BLOCK", 7)
    assert value(a, other) == pytest.approx(value(a, gaussian(70, 6, seed=2)), rel=1e-9)


def test_large_sets_are_drawn_from_and_follow_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kid, "MOST", 50)
    a, b = gaussian(200, 4), gaussian(30, 4, seed=1)
    summary = kernel_distance(a, b).summary["kid"]
    assert summary.extra == {"private_images": 50, "reconstructions": 30}
    drawn = [
        kernel_distance(a, b, rng=torch.Generator().manual_seed(s)).summary["kid"].value
        for s in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_one_image_has_a_reason() -> None:
    summary = kernel_distance(gaussian(1, 2), gaussian(9, 2)).summary["kid"]
    assert summary.value is None and "at least 2" in str(summary.reason)
