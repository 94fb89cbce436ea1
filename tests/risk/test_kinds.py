"""Kinds, rule by rule."""

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


def spread(seed: int) -> Tensor:
    """Ordinary positive values, the classes on scales of their own."""
    rng = np.random.default_rng(seed)
    values = np.exp(0.1 * rng.uniform(-1, 1, N)) * (1.0 + LABELS.numpy())
    return torch.from_numpy(values)


def none() -> Twins:
    return Twins(torch.full((N,), -1), 0.5, 0.025)


def values(loss: float = 0.1, margin: float = 1.0) -> dict[str, Tensor]:
    """Signals of ordinary images, but for image 7."""
    found = {"loss": spread(1), "margin": torch.ones(N), "centre_distance": spread(2)}
    found["loss"][7], found["margin"][7] = loss, margin
    return found


def far(at: int = 7) -> Tensor:
    distances = spread(3)
    distances[at] *= 5
    return distances


def test_ordinary_images_are_typical() -> None:
    assert set(kinds(LABELS, values(loss=1.0), none(), spread(3))) == {"typical"}


@pytest.mark.parametrize(
    ("loss", "margin", "kind"),
    [(0.0, 1.0, "memorised"), (99.0, 1.0, "outlier"), (0.0, -1.0, "outlier")],
)
def test_far_from_its_class(loss: float, margin: float, kind: str) -> None:
    """Memorised takes all three: far, right, and as sure as of the median image."""
    found = kinds(LABELS, values(loss, margin), none(), far())
    assert found[7] == kind and set(found[:7] + found[8:]) == {"typical"}


def test_a_distance_that_has_seen_the_images_calls_nothing_memorised() -> None:
    assert kinds(LABELS, values(0.0), none(), far(), seen=True)[7] == "outlier"


def test_far_in_the_targets_features_alone_is_an_outlier() -> None:
    signals = values(0.0)
    signals["centre_distance"][7] *= 5
    for near in (spread(3), None):
        assert kinds(LABELS, signals, none(), near)[7] == "outlier"


def test_twins_come_before_all_else() -> None:
    group = torch.full((N,), -1)
    group[[7, 11]] = 7
    found = kinds(LABELS, values(0.0), Twins(group, 0.5, 0.02), far())
    assert [found[7], found[11]] == ["duplicate", "duplicate"]
    assert set(found) <= set(KINDS)


def test_rules_whose_signals_are_missing_do_not_apply() -> None:
    assert kinds(LABELS, {}, none(), far())[7] == "outlier"
    assert set(kinds(LABELS, {}, none(), None)) == {"typical"}


def test_the_fence_is_that_of_normal_values() -> None:
    """Above the upper fence lies 1 - Phi(4 * 0.6745) of a normal distribution."""
    rng = np.random.default_rng(0)
    share = float(
        is_far(torch.from_numpy(np.exp(rng.normal(size=400_000))), torch.zeros(400_000))
        .float()
        .mean()
    )
    expected = 0.5 * math.erfc(4 * 0.674489750196 / math.sqrt(2))
    assert share == pytest.approx(expected, rel=0.1)


def test_classes_on_other_scales_do_not_matter() -> None:
    distances = far()
    scaled = distances * torch.tensor([1.0, 100.0, 0.01, 7.0], dtype=torch.float64)[LABELS]
    assert torch.equal(is_far(distances, LABELS), is_far(scaled, LABELS))
    assert is_far(distances, LABELS).nonzero().squeeze(1).tolist() == [7]
