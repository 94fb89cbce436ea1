from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.image.fid import _compute_fid

from inversight.embeddings.base import Features
from inversight.scores import frechet_distance
from tests.scores.build import features, gaussian, shuffled


def value(private: Features, reconstructions: Features) -> float:
    found = frechet_distance(private, reconstructions).summary["frechet"].value
    assert found is not None
    return found


def pair(n: int, m: int, dimensions: int) -> tuple[Features, Features]:
    """Correlated, shifted features of unlike scale, as a network's are."""
    rng = torch.Generator().manual_seed(0)
    mix = torch.randn(dimensions, dimensions, generator=rng) / dimensions**0.5
    left = torch.randn(n, dimensions, generator=rng) @ mix
    right = 1.5 * torch.randn(m, dimensions, generator=rng) @ mix.T + 0.2
    return features(left), features(right, prefix="r")


# More images than dimensions, fewer, and one of each.
SIZES = [(300, 200, 24), (20, 30, 64), (15, 200, 48)]


@pytest.mark.parametrize(("n", "m", "dimensions"), SIZES)
def test_equals_torch_fidelity(n: int, m: int, dimensions: int) -> None:
    sides = pair(n, m, dimensions)
    statistics = [fid_features_to_statistics(side.flat().double()) for side in sides]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert value(*sides) == pytest.approx(expected, abs=1e-3, rel=1e-5)


@pytest.mark.parametrize(("n", "m", "dimensions"), SIZES)
def test_equals_torchmetrics(n: int, m: int, dimensions: int) -> None:
    sides = pair(n, m, dimensions)
    moments: list[Tensor] = []
    for side in sides:
        flat = side.flat().double()
        moments += [flat.mean(0), torch.cov(flat.T)]
    assert value(*sides) == pytest.approx(float(_compute_fid(*moments)), abs=1e-3, rel=1e-5)


def test_identity_is_zero_and_never_below() -> None:
    for n in (5, 100):
        given = gaussian(n, 16)
        assert 0.0 <= value(given, given) < 1e-12


def test_closed_form_in_one_dimension() -> None:
    # (m - m')^2 + (s - s')^2 with means 1 and 5 and standard deviations 2^(1/2) and 18^(1/2).
    found = value(features([[0.0], [2.0]]), features([[2.0], [8.0]]))
    assert found == pytest.approx(16 + (18**0.5 - 2**0.5) ** 2)


def test_closed_form_where_covariances_are_diagonal() -> None:
    # The corners +-a e_i have mean 0 and covariance 2 a^2 / (2 D - 1) in every direction.
    corners = torch.cat([torch.eye(6), -torch.eye(6)])
    found = value(features(corners), features(3 * corners + 2))
    assert found == pytest.approx(6 * (4 + 2 / 11 * (3 - 1) ** 2), rel=1e-6)


def test_farther_reconstructions_score_higher() -> None:
    private = gaussian(50, 8)
    found = [value(private, gaussian(50, 8, seed=1, shift=shift)) for shift in (0, 1, 3)]
    assert found == sorted(found)
    assert frechet_distance(private, private).direction == "lower"


def test_order_of_rows_and_of_sides_does_not_matter() -> None:
    private, made = pair(40, 30, 16)
    expected = value(private, made)
    assert value(shuffled(private)[0], shuffled(made)[0]) == pytest.approx(expected, rel=1e-9)
    assert value(made, private) == pytest.approx(expected, rel=1e-9)


def test_blocks_of_rows_give_the_covariance_of_all() -> None:
    # 4 dimensions are folded in 16 rows at a time: 100 rows pass through seven blocks.
    private, made = pair(100, 90, 4)
    flat = [side.flat().double() for side in (private, made)]
    root = torch.linalg.eigvals(torch.cov(flat[0].T) @ torch.cov(flat[1].T)).real.sqrt().sum()
    traces = sum(float(side.var(0).sum()) for side in flat)
    expected = float((flat[0].mean(0) - flat[1].mean(0)).square().sum() - 2 * root) + traces
    assert value(private, made) == pytest.approx(expected, rel=1e-9)


def test_classes_do_not_matter() -> None:
    private, made = pair(10, 12, 6)
    other = replace(made, labels=torch.arange(12) + 50)
    assert value(private, other) == value(private, made)


@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 1)])
def test_one_image_has_no_covariance(n: int, m: int) -> None:
    summary = frechet_distance(gaussian(n, 4), gaussian(m, 4, seed=1)).summary["frechet"]
    assert summary.value is None
    assert "at least 2" in str(summary.reason)
    assert summary.as_json()["private_images"] == n
