from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from inversight.risk.kinds import KINDS, is_far, kinds
from inversight.risk.twins import Twins

N = 40
LABELS = torch.arange(N) % 4
NO_TWINS = Twins(torch.full((N,), -1), 0.5, 0.025)


def spread(seed: int) -> Tensor:
    """Return ordinary positive values, the classes on different scales."""
    noise = np.random.default_rng(seed).uniform(-1, 1, N)
    return torch.from_numpy(np.exp(0.1 * noise) * (1.0 + LABELS.numpy()))


def values(loss: float = 0.1, margin: float = 1.0) -> dict[str, Tensor]:
    """Return signals of ordinary images except for image 7."""
    found = {"loss": spread(1), "margin": torch.ones(N), "centre_distance": spread(2)}
    found["loss"][7], found["margin"][7] = loss, margin
    return found


def far() -> Tensor:
    """Return distances of ordinary images except for image 7, which is far."""
    distances = spread(3)
    distances[7] *= 5
    return distances


OUTSIDE = {**values(0.0), "centre_distance": values()["centre_distance"] * (far() / spread(3))}


@pytest.mark.parametrize(
    ("signals", "distances", "seen", "kind"),
    [
        (values(loss=1.0), spread(3), False, "typical"),
        ({}, None, False, "typical"),
        # Memorised: far from its class, right, and at least as confident as on the median image.
        (values(0.0, 1.0), far(), False, "memorised"),
        (values(99.0, 1.0), far(), False, "outlier"),
        (values(0.0, -1.0), far(), False, "outlier"),
        (values(0.0), far(), True, "outlier"),
        ({}, far(), False, "outlier"),
        (OUTSIDE, spread(3), False, "outlier"),
        (OUTSIDE, None, False, "outlier"),
    ],
)
def test_kind_of_an_image(
    signals: dict[str, Tensor], distances: Tensor | None, seen: bool, kind: str
) -> None:
    found = kinds(LABELS, signals, NO_TWINS, distances, seen=seen)
    assert found[7] == kind and set(found[:7] + found[8:]) == {"typical"}


def test_twins_are_duplicates_whatever_else_they_are() -> None:
    group = torch.full((N,), -1)
    group[[7, 11]] = 7
    found = kinds(LABELS, values(0.0), Twins(group, 0.5, 0.02), far())
    assert [found[7], found[11]] == ["duplicate", "duplicate"]
    assert set(found) <= set(KINDS)


def test_share_of_normal_values_beyond_the_fence() -> None:
    """Above the upper fence lies 1 - Phi(4 * 0.6745) of a normal distribution."""
    drawn = torch.from_numpy(np.exp(np.random.default_rng(0).normal(size=400_000)))
    share = float(is_far(drawn, torch.zeros(400_000)).float().mean())
    expected = 0.5 * math.erfc(4 * 0.674489750196 / math.sqrt(2))
    assert share == pytest.approx(expected, rel=0.1)


def test_scales_of_classes_do_not_matter() -> None:
    scaled = far() * torch.tensor([1.0, 100.0, 0.01, 7.0], dtype=torch.float64)[LABELS]
    for distances in (far(), scaled):
        assert is_far(distances, LABELS).nonzero().flatten().tolist() == [7]
