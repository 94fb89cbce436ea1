from __future__ import annotations

from typing import Any

import pytest
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from inversight.embeddings.base import Features
from inversight.scores import kernel_distance, kid
from tests.draws import rng
from tests.scores.build import gaussian, value


def distance(*sides: Features, **options: Any) -> float:
    return value(kernel_distance(*sides, **options))


def fidelity(a: Features, b: Features, subsets: int, size: int) -> float:
    """Return torch-fidelity's mean over random subsets."""
    found: dict[str, float] = kid_features_to_metric(
        a.flat().double(),
        b.flat().double(),
        kid_subsets=subsets,
        kid_subset_size=size,
        verbose=False,
    )
    return found[KEY_METRIC_KID_MEAN]


@pytest.mark.parametrize(("n", "dimensions"), [(2, 3), (50, 12), (130, 40)])
def test_equals_torch_fidelity_on_one_subset(n: int, dimensions: int) -> None:
    a, b = gaussian(n, dimensions), gaussian(n, dimensions, seed=1, shift=0.2)
    assert distance(a, b) == pytest.approx(fidelity(a, b, 1, n), rel=1e-9, abs=1e-12)


def test_is_the_expectation_of_the_mean_over_subsets() -> None:
    a, b = gaussian(60, 5), gaussian(90, 5, seed=1, shift=0.5)
    assert distance(a, b) == pytest.approx(fidelity(a, b, 3000, 30), rel=0.03)


def test_identity_and_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    a, other = gaussian(80, 6), gaussian(70, 6, seed=2)
    # Unbiased: a set against itself lies below 0, since it leaves its own diagonal out on one side.
    assert -0.5 < distance(a, a) <= 0.0
    expected = distance(a, other)
    monkeypatch.setattr(kid, "_BLOCK", 7)
    assert distance(a, other) == pytest.approx(expected, rel=1e-9)


def test_draws_from_large_sets_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kid, "MOST", 50)
    a, b = gaussian(200, 4), gaussian(30, 4, seed=1)
    extra = kernel_distance(a, b).summary["kid"].extra
    assert extra == {"private_images": 50, "reconstructions": 30}
    one, same, other = (distance(a, b, rng=rng(seed)) for seed in (1, 1, 2))
    assert one == same != other
