from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.image.fid import _compute_fid

from inversight.embeddings.base import Features
from inversight.scores import frechet_distance
from tests.draws import normal
from tests.scores.build import features, shuffled, value


def frechet(private: Features, made: Features) -> float:
    return value(frechet_distance(private, made))


def pair(n: int, m: int, dimensions: int) -> tuple[Features, Features]:
    """Return correlated, shifted features of unlike scale, as a network's are."""
    mix = normal(dimensions, dimensions) / dimensions**0.5
    left, right = normal(n, dimensions, seed=1) @ mix, normal(m, dimensions, seed=2) @ mix.T
    return features(left), features(1.5 * right + 0.2, prefix="r")


# More images than dimensions, fewer, and one of each.
@pytest.mark.parametrize(("n", "m", "dimensions"), [(300, 200, 24), (20, 30, 64), (15, 200, 48)])
def test_equals_torch_fidelity_and_torchmetrics(n: int, m: int, dimensions: int) -> None:
    sides = pair(n, m, dimensions)
    flat = [side.flat().double() for side in sides]
    moments = [moment for x in flat for moment in (x.mean(0), torch.cov(x.T))]
    fidelity = fid_statistics_to_metric(*map(fid_features_to_statistics, flat), verbose=False)
    for expected in (fidelity["frechet_inception_distance"], float(_compute_fid(*moments))):
        assert frechet(*sides) == pytest.approx(expected, abs=1e-3, rel=1e-5)


def test_closed_form_in_one_dimension() -> None:
    # (m - m')^2 + (s - s')^2 with means 1 and 5 and standard deviations 2^(1/2) and 18^(1/2).
    found = frechet(features([[0.0], [2.0]]), features([[2.0], [8.0]]))
    assert found == pytest.approx(16 + (18**0.5 - 2**0.5) ** 2)


def test_closed_form_for_diagonal_covariances() -> None:
    # The corners +-a e_i have mean 0 and covariance 2 a^2 / (2 D - 1) in every direction.
    corners = torch.cat([torch.eye(6), -torch.eye(6)])
    found = frechet(features(corners), features(3 * corners + 2))
    assert found == pytest.approx(6 * (4 + 2 / 11 * (3 - 1) ** 2), rel=1e-6)


def test_does_not_depend_on_order_or_classes() -> None:
    private, made = pair(40, 30, 16)
    expected = frechet(private, made)
    assert frechet(shuffled(private)[0], shuffled(made)[0]) == pytest.approx(expected, rel=1e-9)
    assert frechet(made, private) == pytest.approx(expected, rel=1e-9)
    assert frechet(private, replace(made, labels=torch.arange(30) + 50)) == expected
    assert all(0.0 <= frechet(side, side) < 1e-12 for side in pair(5, 100, 16))


def test_covariance_is_exact_over_blocks_of_rows() -> None:
    # 4 dimensions are folded in 16 rows at a time: 100 rows pass through seven blocks.
    private, made = pair(100, 90, 4)
    flat = [side.flat().double() for side in (private, made)]
    root = torch.linalg.eigvals(torch.cov(flat[0].T) @ torch.cov(flat[1].T)).real.sqrt().sum()
    traces = sum(float(side.var(0).sum()) for side in flat)
    expected = float((flat[0].mean(0) - flat[1].mean(0)).square().sum() - 2 * root) + traces
    assert frechet(private, made) == pytest.approx(expected, rel=1e-9)
