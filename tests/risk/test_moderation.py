"""Moderated variances against the moments they are fitted by, and power against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import polygamma, psi
from scipy.stats import t

from inversight.risk.moderation import (
    detectable_effect,
    fit_variances,
    moderate,
    trigamma_inverse,
)
from tests.reference.exposure_loop import prior


@given(st.floats(1e-5, 1e5))
def test_trigamma_inverse(y: float) -> None:
    assert trigamma_inverse(float(polygamma(1, y))) == pytest.approx(y, rel=1e-6)


def test_two_variances_in_closed_form() -> None:
    """Smyth 2004, section 6.2, for s^2 = 1 and exp(4) with two degrees of freedom each.

    digamma(1) = -gamma and trigamma(1) = pi^2 / 6, so that e has mean 2 + gamma and variance 8; then
    trigamma(d0 / 2) = 8 - pi^2 / 6.
    """
    s0, d0 = fit_variances(np.array([1.0, math.exp(4)]), np.full(2, 2.0))
    assert polygamma(1, d0 / 2) == pytest.approx(8 - math.pi**2 / 6)
    assert math.log(s0) == pytest.approx(2 + np.euler_gamma + psi(d0 / 2) - math.log(d0 / 2))


def test_agrees_with_bisection_for_different_degrees_of_freedom() -> None:
    rng = np.random.default_rng(0)
    freedom = rng.integers(2, 12, size=40)
    variances = 0.3 * 6 / rng.chisquare(6, size=40) * rng.chisquare(freedom) / freedom
    assert fit_variances(variances, freedom.astype(float)) == pytest.approx(
        prior(variances.tolist(), freedom.tolist())
    )


@pytest.mark.parametrize("d0", [4.0, 10.0, 40.0])
def test_finds_the_distribution_that_variances_come_from(d0: float) -> None:
    rng = np.random.default_rng(1)
    true = 0.04 * d0 / rng.chisquare(d0, size=40_000)
    s0, found = fit_variances(true * rng.chisquare(11, size=40_000) / 11, np.full(40_000, 11.0))
    assert s0 == pytest.approx(0.04, rel=0.02)
    assert found == pytest.approx(d0, rel=0.1)


def test_equal_variances_are_pooled() -> None:
    values = np.full(5, 0.3)
    found = moderate(values, np.full(5, 3.0))
    assert found.prior_freedom == math.inf
    np.testing.assert_allclose(found.variance, values)
    np.testing.assert_allclose(found.freedom, 15.0)


def test_zeros_nan_and_single_variances() -> None:
    found = moderate(np.array([0.0, 0.1, 0.2, 0.4, np.nan]), np.full(5, 3.0))
    assert np.isnan(found.variance[4]) and np.isnan(found.freedom[4])
    assert (found.variance[:4] > 0).all()
    assert (np.diff(found.variance[:4]) > 0).all()
    assert moderate(np.zeros(3), np.full(3, 2.0)).variance.tolist() == [0.0] * 3
    alone = moderate(np.array([0.5]), np.array([2.0]))
    assert (alone.variance[0], alone.freedom[0], alone.prior_freedom) == (0.5, 2.0, 0.0)
    assert np.isnan(moderate(np.array([np.nan]), np.array([2.0])).variance).all()


def test_moderated_variances_lie_between_own_and_typical() -> None:
    rng = np.random.default_rng(2)
    values = 8 / rng.chisquare(8, size=200) * rng.chisquare(5, size=200) / 5
    found = moderate(values, np.full(200, 5.0))
    own, typical = values, found.prior_variance
    assert ((found.variance - own) * (found.variance - typical) <= 1e-12).all()
    np.testing.assert_allclose(found.freedom, 5 + found.prior_freedom)


@pytest.mark.parametrize(("freedom", "level"), [(3.0, 0.05), (11.0, 0.001), (math.inf, 0.01)])
def test_detectable_effect_has_80_percent_power(freedom: float, level: float) -> None:
    effect = detectable_effect(0.2, freedom, level)
    rng = np.random.default_rng(3)
    n = 40_000
    scale = 1.0 if math.isinf(freedom) else np.sqrt(rng.chisquare(freedom, size=n) / freedom)
    value = (effect / 0.2 + rng.normal(size=n)) / scale
    assert (t.sf(value, min(freedom, 1e9)) <= level).mean() == pytest.approx(0.8, abs=0.01)
