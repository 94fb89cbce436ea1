"""Estimates of exposure and what is reported of them: tests, intervals, shrinkage and power."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm, t
from torch import Tensor

from inversight.core.errors import ConfigError, DesignError
from inversight.risk.calibration import check_rate
from inversight.risk.experiment import (
    LEAST_MODELS,
    LEAST_TO_FLAG,
    Bools,
    Floats,
    nanmean,
    q_values,
)
from inversight.risk.moderation import POWER, Moderated, detectable_effect, moderate
from inversight.scores.result import Summary
from inversight.settings import DEFAULT_FDR

LEVEL = 0.05
"""Level of the test of the set for which a detectable factor is stated."""

SPREAD = 0.25
"""Standard deviation of D of an image in one pair, for plans before anything was measured: an AUC of 0.6
in against out goes with a mean factor of 1.065, as the digits have."""

_ROUNDING = 1e-24
"""Sums of squares below this fraction of the squared mean are 0."""


@dataclass(frozen=True)
class Estimates:
    """Effects on the logarithm of the distance: (N,) each, NaN where nothing is known.

    effect: positive is nearer when trained on. error: its standard error, with ``freedom`` degrees of
    freedom. p: one-sided p-value.
    """

    effect: Floats
    error: Floats
    freedom: Floats
    p: Floats


def paired(differences: Floats, factor: int = 1) -> tuple[Estimates, Moderated]:
    """Return the moderated paired t-test of differences (P, N) over pairs, p-values times ``factor``.

    Where all variances are 0, p is that of sign flips, 2^-P, for a positive effect, and else 1.
    """
    known = np.isfinite(differences)
    n = known.sum(0)
    effect = nanmean(differences, 0)
    squares = np.nansum((differences - effect) ** 2, 0)
    # Differences that are equal up to rounding have no variance.
    squares[squares < _ROUNDING * effect**2] = 0.0
    variances = np.where(n > 1, squares / np.maximum(n - 1, 1), np.nan)
    moderated = moderate(variances, np.maximum(n - 1.0, 1.0))
    error = np.sqrt(moderated.variance / np.maximum(n, 1))
    p = one_sided(effect, error, moderated.freedom, least=0.5**n)
    return Estimates(effect, error, moderated.freedom, np.minimum(p * factor, 1.0)), moderated


def one_sided(effect: Floats, error: Floats, freedom: Floats, least: Floats) -> Floats:
    """Return p-values (N,) of effects above 0; ``least`` where the error is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p = t.sf(effect / error, np.minimum(freedom, 1e12))
    p = np.where(error > 0, p, np.where(effect > 0, least, 1.0))
    return np.where(np.isfinite(effect) & np.isfinite(error), p, np.nan)


def pair_weights(
    differences: Floats, images: Bools, parts: NDArray[np.int64] | None = None
) -> Floats:
    """Return (P, N): 1 / (pairs known of the image) / (number of ``images``), 0 where there is no D.

    Sums of D with these weights are means over images of means over pairs. ``parts`` (N,): means within
    each part instead of over all images.
    """
    known = np.isfinite(differences) & images
    pairs = known.sum(0)
    part = np.zeros(len(images), dtype=np.int64) if parts is None else parts
    total = np.bincount(part, pairs > 0)[part]
    return np.asarray(known / np.maximum(pairs, 1) / np.maximum(total, 1))


def columns_of(found: Estimates, judged: Bools, fdr: float) -> dict[str, Tensor]:
    """Return the columns of ``per_sample``."""
    half = t.ppf(0.975, np.minimum(found.freedom, 1e12)) * found.error
    q = q_values(found.p, judged)
    logs = {
        "exposure": found.effect,
        "exposure_low": found.effect - half,
        "exposure_high": found.effect + half,
        "exposure_shrunken": shrunken(found.effect, found.error),
    }
    with np.errstate(over="ignore"):
        columns = {name: torch.from_numpy(np.exp(values)) for name, values in logs.items()}
    return {
        **columns,
        "exposure_p": torch.from_numpy(found.p),
        "exposure_q": torch.from_numpy(q),
        # Rounding of p N / k must not decide.
        "exposed": torch.from_numpy(q <= fdr * (1.0 + 1e-12)),
    }


def shrunken(effect: Floats, error: Floats) -> Floats:
    """Return posterior means (N,) of effects for a normal prior, fitted to all of them by moments."""
    known = np.isfinite(effect) & np.isfinite(error)
    if not known.any():
        return np.full(effect.shape, np.nan)
    centre_of = float(effect[known].mean())
    noise = np.where(known, error**2, np.nan)
    signal = _signal(effect[known], noise[known])
    weight = signal / (signal + noise) if signal else np.where(known, 0.0, np.nan)
    return centre_of + weight * (effect - centre_of)


def reliability(effect: Floats, error: Floats) -> float:
    """Return in [0, 1] the fraction of the variance between images that is not noise; higher is surer.

    About the correlation of these effects with those of as many other shadow models.

    Args:
        effect: (n,) with n >= 2, all known.
        error: (n,), all known.
    """
    noise = error**2
    signal = _signal(effect, noise)
    return signal / (signal + float(noise.mean())) if signal else 0.0


def _signal(effect: Floats, noise: Floats) -> float:
    """Return the variance between images without the noise, by moments; 0 for a single image."""
    spread = float(effect.var(ddof=1)) if len(effect) > 1 else 0.0
    return max(0.0, spread - float(noise.mean()))


def exposed_summary(
    columns: Mapping[str, Tensor],
    judged: Bools,
    private: Bools,
    fdr: float,
    models: int,
    found: Estimates,
    moderated: Moderated,
    factor: int,
) -> Summary:
    """Return ``exposed``."""
    images = int(judged.sum())
    extra: dict[str, float | int | str] = {
        "fdr": fdr,
        "models": models,
        "not_judged": int(private.sum()) - images,
    }
    if not images:
        least = f"at least {LEAST_TO_FLAG} shadow models with reconstructions of the class"
        return Summary(
            None,
            reason=f"no private image can be judged: needs {least}, and a class of four units",
            extra=extra,
        )
    count = int(columns["exposed"].sum())
    level = fdr / images / factor
    spread = float(np.sqrt(moderated.variance[judged].mean()))
    error = float(np.sqrt((found.error[judged] ** 2).mean()))
    extra |= {"count": count, "images": images, "spread": spread, "level": level}
    if math.isfinite(moderated.prior_freedom):
        extra["prior_freedom"] = moderated.prior_freedom
    found_factor = factor_of(
        detectable_effect(error, float(np.median(found.freedom[judged])), level)
    )
    if found_factor is not None:
        extra["detectable"] = found_factor
    if images > 1:
        extra["reliability"] = reliability(found.effect[judged], found.error[judged])
    return Summary(count / images, extra=extra)


def planned_factors(
    models: int,
    images: int,
    *,
    spread: float = SPREAD,
    prior_freedom: float = math.inf,
    fdr: float = DEFAULT_FDR,
) -> tuple[float | None, float]:
    """Return the factors that ``models`` would find with 80 % power: of one image alone, of the mean.

    Those of ``exposed`` and ``exposure_mean`` before anything is trained. An image alone is flagged at
    level ``fdr`` / ``images``; None with fewer than eight models. The factor of the mean takes images as
    independent and is too small where images of a model have more in common than their class.

    Args:
        images: private images that can be judged, >= 1.
        spread: standard deviation of an image's D, ``spread`` of an earlier ``exposed``.
        prior_freedom: ``prior_freedom`` of an earlier ``exposed``.

    Raises:
        DesignError: an odd number of models or fewer than four.
        ConfigError: no image, or fdr out of range.
    """
    check_rate(fdr)
    if models % 2 or models < LEAST_MODELS:
        raise DesignError(
            f"shadow models: expected an even number of at least {LEAST_MODELS}, found {models}"
        )
    if images < 1:
        raise ConfigError(f"images: expected at least 1, found {images}")
    pairs = models // 2
    error = spread / math.sqrt(pairs)
    freedom = min(pairs - 1 + prior_freedom, images * (pairs - 1))
    single = None
    if models >= LEAST_TO_FLAG:
        single = factor_of(detectable_effect(error, freedom, fdr / images))
    return single, math.exp(error / math.sqrt(images) * of_the_mean(1))


def mean_summary(
    means: Floats, null: Floats, factor: int, extra: Mapping[str, float | int | str], known: bool
) -> Summary:
    """Return ``exposure_mean`` from the means of pairs (P,) and the means of redraws (R,)."""
    if not known:
        return nothing(extra)
    return effect_summary(*_interval(means), null, factor, extra)


def effect_summary(
    value: float, half: float, null: Floats, factor: int, extra: Mapping[str, float | int | str]
) -> Summary:
    """Return ``exposure_mean`` from the mean effect, half its interval and the means of redraws (R,)."""
    # Redraws of what was observed give the mean itself, up to rounding.
    reached = null >= value - 1e-9 * float(np.abs(null).max())
    p = (1 + int(reached.sum())) / (len(null) + 1)
    effect = float(null.std()) * of_the_mean(factor)
    return Summary(
        factor_of(value),
        factor_of(value - half),
        factor_of(value + half),
        extra={**extra, "p_value": min(1.0, p * factor), "detectable": math.exp(effect)},
    )


def over_pairs(means: Floats, extra: Mapping[str, float | int | str], known: bool) -> Summary:
    """Return the mean of fractions (P,) of pairs with its interval, within [0, 1]."""
    if not known:
        return nothing(extra)
    value, half = _interval(means)
    return Summary(value, max(0.0, value - half), min(1.0, value + half), extra=extra)


def _interval(means: Floats) -> tuple[float, float]:
    """Return the mean over pairs and half the width of its 95 % interval."""
    n = len(means)
    return float(means.mean()), float(t.ppf(0.975, n - 1) * means.std(ddof=1) / math.sqrt(n))


def of_the_mean(factor: int) -> float:
    """Return the effect that the test of the set finds with 80 % power, in standard errors."""
    return float(norm.isf(LEVEL / factor) + norm.ppf(POWER))


def nothing(extra: Mapping[str, float | int | str]) -> Summary:
    reason = "no private image has a classmate and distances in models with and without it"
    return Summary(None, reason=reason, extra=extra)


def factor_of(effect: float) -> float | None:
    """Return exp(effect), None where it is out of the range of numbers."""
    return math.exp(effect) if abs(effect) < 700 else None
