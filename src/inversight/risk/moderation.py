"""Moderated variances: each image's own variance joined with what is typical of all of them.

With a few pairs of models an image's own variance is little more than noise. Variances are assumed to be
drawn from a scaled inverse chi-square distribution, whose parameters are fitted to all images (Smyth
2004, "Linear models and empirical Bayes methods", as ``fitFDist`` and ``squeezeVar`` of the R package
limma do).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import digamma, polygamma
from scipy.stats import nct, norm, t

Floats = NDArray[np.float64]

POWER = 0.8
"""Power at which detectable effects are stated."""

_OFFSET = 1e-5
"""Variances below this fraction of the median count as equal to it, as in limma."""


@dataclass(frozen=True)
class Moderated:
    """Variances after moderation.

    variance, freedom: (N,) moderated variances >= 0 and their degrees of freedom, NaN where the own
    variance was NaN. prior_variance, prior_freedom: s0^2 and d0 of the fit; d0 is infinite where the
    variances differ no more than by chance, and all images then share one variance.
    """

    variance: Floats
    freedom: Floats
    prior_variance: float
    prior_freedom: float


def fit_variances(variances: Floats, freedom: Floats) -> tuple[float, float]:
    """Return s0^2 and d0 by moments of the logarithms of variances (n,) with ``freedom`` (n,) > 0.

    The logarithm of a variance with d degrees of freedom has mean log s0^2 + digamma(d / 2) - log(d / 2)
    - digamma(d0 / 2) + log(d0 / 2) and variance trigamma(d / 2) + trigamma(d0 / 2) (Smyth 2004, section
    6.2). One variance gives itself and d0 = 0; only zeros give 0 and infinity.
    """
    positive = variances[variances > 0]
    if not len(positive):
        return 0.0, math.inf
    if len(variances) < 2:
        return float(variances[0]), 0.0
    offset = np.maximum(variances, _OFFSET * np.median(positive))
    e = np.log(offset) - digamma(freedom / 2) + np.log(freedom / 2)
    spread = float(e.var(ddof=1) - polygamma(1, freedom / 2).mean())
    if spread <= 0:
        return float(offset.mean()), math.inf
    half = trigamma_inverse(spread)
    return float(np.exp(e.mean() + digamma(half) - np.log(half))), 2 * half


def moderate(variances: Floats, freedom: Floats) -> Moderated:
    """Return moderated variances: (d0 s0^2 + d s^2) / (d0 + d) with d0 + d degrees of freedom.

    These are at most the sum of all own degrees of freedom, as in limma.

    Args:
        variances: (N,) >= 0, NaN where there is none.
        freedom: (N,) their degrees of freedom d, > 0 where variances are not NaN.
    """
    known = np.isfinite(variances)
    if not known.any():
        nothing = np.full(variances.shape, np.nan)
        return Moderated(nothing, nothing, math.nan, math.nan)
    prior, d0 = fit_variances(variances[known], freedom[known])
    total = np.where(known, np.minimum(freedom + d0, freedom[known].sum()), np.nan)
    weight = freedom / (freedom + d0) if math.isfinite(d0) else np.zeros(variances.shape)
    joined = np.where(known, weight * variances + (1 - weight) * prior, np.nan)
    return Moderated(joined, total, prior, d0)


def trigamma_inverse(x: float) -> float:
    """Return y > 0 with trigamma(y) = x > 0, by Newton's method on 1 / trigamma, which is convex."""
    if x > 1e7:
        return float(x**-0.5)
    if x < 1e-6:
        return 1.0 / x
    y = 0.5 + 1.0 / x
    for _ in range(50):
        value = float(polygamma(1, y))
        step = value * (1.0 - value / x) / float(polygamma(2, y))
        y += step
        if abs(step) < 1e-10 * y:
            break
    return y


def detectable_effect(error: float, freedom: float, level: float) -> float:
    """Return the effect > 0 that a one-sided t-test at ``level`` finds with 80 % power.

    Args:
        error: standard error of the effect, >= 0.
        freedom: its degrees of freedom, > 0, may be infinite.
    """
    if freedom > 1e6:
        return error * float(norm.isf(level) + norm.ppf(POWER))
    threshold = float(t.isf(level, freedom))
    high = threshold + 1.0
    while nct.sf(threshold, freedom, high) < POWER:
        high *= 1.5
    return error * float(brentq(lambda m: nct.sf(threshold, freedom, m) - POWER, 0.0, high))
