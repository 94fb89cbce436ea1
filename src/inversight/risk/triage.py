"""Prediction of the private images at risk from signals alone, and how well it works.

:func:`expected_risk` needs no attack: it uses each signal in the direction that was fixed for it.
:func:`learn` fits how signals relate to the measured distance in a few attacked classes and predicts
other classes. :func:`agreement` measures how far either, or a signal alone, agrees with an attack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from torch import Tensor

from inversight.core.errors import InputError
from inversight.risk.signals import SIGNALS
from inversight.scores.bootstrap import default_rng, resampled
from inversight.scores.result import Summary

PENALTIES = (1.0, 10.0, 100.0, 1000.0)
"""Ridge penalties to choose from."""

FOLDS = 5
"""Largest number of groups of classes that are left out in turn."""

FEWEST_CLASSES, FEWEST_IMAGES = 2, 10
"""Smallest number of attacked classes, and of images in them, for a fit."""

_SCRATCH = 1 << 22
"""Numbers held at once in the temporaries of a bootstrap: 32 MiB of float64."""

Floats = NDArray[np.float64]


def expected_risk(values: Mapping[str, Tensor]) -> Tensor:
    """In [0, 1], (N,) float64, higher is expected to be more at risk; NaN where no signal is known.

    Images are ranked in each signal, in the direction of its sign in ``SIGNALS``, and ranks are scaled
    to [0, 1]. They are averaged within each family of signals and then over families, so that the four
    measures of confidence count as one. Ranks are over all images, not within classes, because which
    classes are at risk is part of the question.

    Args:
        values: signals by name, each (N,); other names are ignored.

    Raises:
        InputError: none of the signals is there.
    """
    families: dict[str, list[Tensor]] = {}
    for name, signed in oriented(values).items():
        ranks = torch.from_numpy(_unit_ranks(signed.numpy()))
        families.setdefault(SIGNALS[name].family, []).append(ranks)
    if not families:
        raise InputError("triage: none of the signals is there to predict from")
    return torch.stack([torch.stack(parts).nanmean(0) for parts in families.values()]).nanmean(0)


@dataclass(frozen=True)
class RiskFit:
    """The fit of :func:`learn`.

    risk: (N,) float64, higher is more at risk: minus the expected log distance, up to a constant.
    classes: the classes of the fit, on which it must not be evaluated. slopes: for each signal, change
    of the log distance for one standard deviation of its normal score. penalty: of the ridge regression.
    """

    risk: Tensor
    classes: frozenset[str]
    slopes: Mapping[str, float]
    penalty: float


def learn(
    values: Mapping[str, Tensor], nearest: Tensor, labels: Sequence[str], *, folds: int = FOLDS
) -> RiskFit:
    """Fit the risk of all N images on the classes that were attacked.

    Ridge regression of the log nearest distance on signals, each as the normal score of an image's rank
    among all N images. Both are taken relative to their class's mean: a few classes show how images of
    one class differ, but hardly why one class is nearer than another. The slopes found within classes
    are used between them too. The penalty is the one of ``PENALTIES`` with the smallest error on
    attacked classes left out of the fit, in ``folds`` groups or one by one.

    Args:
        values: signals by name, each (N,).
        nearest: (N,) float64 >= 0, NaN where nothing was attacked.
        labels: N names of classes.

    Raises:
        InputError: fewer than two classes, or ten images, with a distance.
    """
    known = nearest.isfinite().numpy()
    groups = np.array(labels)[known]
    count = len(set(groups.tolist()))
    if count < FEWEST_CLASSES or len(groups) < FEWEST_IMAGES:
        raise InputError(
            f"triage: learning needs at least {FEWEST_CLASSES} attacked classes and {FEWEST_IMAGES} "
            f"images with a measured distance, found {count} and {len(groups)}; audit more classes"
        )
    names = tuple(name for name in SIGNALS if name in values)
    scores = np.stack([_normal_scores(values[name]) for name in names], axis=1)
    target = np.log(np.maximum(nearest.double().numpy()[known], 1e-6))[:, None]
    search: Any = GridSearchCV(
        Ridge(fit_intercept=False), {"alpha": list(PENALTIES)},
        scoring="neg_mean_squared_error", cv=GroupKFold(min(folds, count)),
    )  # fmt: skip
    within = _less_class_mean(scores[known], groups)
    search.fit(within, _less_class_mean(target, groups)[:, 0], groups=groups)
    slopes = search.best_estimator_.coef_
    return RiskFit(
        torch.from_numpy(-(scores @ slopes)),
        frozenset(groups.tolist()),
        dict(zip(names, map(float, slopes), strict=True)),
        float(search.best_params_["alpha"]),
    )


def cross_validated(
    values: Mapping[str, Tensor], nearest: Tensor, labels: Sequence[str], *, folds: int = FOLDS
) -> Tensor:
    """Return (N,) float64: the risk that :func:`learn` predicts from *other* classes alone.

    Attacked classes are left out in ``folds`` groups, or one by one if there are fewer; each fit,
    including the choice of the penalty, uses the distances of the others only. NaN without a distance.

    Raises:
        InputError: fewer than three attacked classes, or too few images.
    """
    found = torch.full((len(labels),), float("nan"), dtype=torch.float64)
    rows = nearest.isfinite().nonzero().squeeze(1)
    groups = np.array(labels)[rows.numpy()]
    count = len(set(groups.tolist()))
    if count < FEWEST_CLASSES + 1:
        raise InputError(
            f"triage: evaluating the fit needs at least {FEWEST_CLASSES + 1} attacked classes, "
            f"found {count}"
        )
    for _, test in GroupKFold(min(folds, count)).split(groups, groups=groups):
        left_out = rows[torch.from_numpy(test)]
        known = nearest.clone()
        known[left_out] = float("nan")
        found[left_out] = learn(values, known, labels, folds=folds).risk[left_out]
    return found


def agreement(
    predicted: Mapping[str, Tensor],
    measured: Tensor,
    labels: Sequence[str],
    *,
    resamples: int = 500,
    rng: torch.Generator | None = None,
) -> dict[str, Summary]:
    """In [-1, 1], higher is better: Spearman's correlation of each predictor with the measurement.

    Ties have their mean rank. ``within`` leaves out differences between classes: the correlation of
    ranks within classes, scaled to [-1, 1]. Both have 95 % intervals (``within_low``, ``within_high``)
    by resampling images within their classes. ``images`` is the number of images that have both values.
    The value is None with a reason for fewer than three images or no variation.

    Args:
        predicted: by name, each (N,), higher is more at risk.
        measured: (N,), higher is more at risk.
        labels: N class names.
    """
    rng = rng or default_rng()
    state = rng.get_state()
    found = {}
    for name, values in predicted.items():
        rng.set_state(state)  # the same resamples for each, so that they compare
        found[name] = _agreement(values, measured, labels, resamples, rng)
    return found


def oriented(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each signal times its sign, so that higher is expected to mean more risk."""
    return {
        name: values[name].double() * signal.sign
        for name, signal in SIGNALS.items()
        if name in values
    }


def _agreement(
    predicted: Tensor, measured: Tensor, labels: Sequence[str], resamples: int, rng: torch.Generator
) -> Summary:
    x, y = predicted.double().numpy(), measured.double().numpy()
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    groups = np.unique(np.array(labels)[known], return_inverse=True)[1]
    if len(x) < 3:
        return Summary(None, reason="fewer than three images have both values")
    order = np.argsort(groups, kind="stable")
    x, y, groups = x[order], y[order], groups[order]
    sizes = np.bincount(groups)
    once = np.ones((1, len(x)))
    value = float(_spearman(x, y, once)[0])
    within = float(_within(x, y, sizes, once)[0])
    extra: dict[str, float | int | str] = {"images": len(x)}
    if np.isnan(value):
        return Summary(None, reason="all images have the same value", extra=extra)
    if not np.isnan(within):
        extra["within"] = within
    draws: list[Floats] = []
    for rows in resampled(torch.from_numpy(sizes), resamples, _SCRATCH // (8 * len(x)), rng):
        index = rows.numpy() + len(x) * np.arange(len(rows))[:, None]
        times = np.bincount(index.ravel(), minlength=index.size).reshape(rows.shape).astype(float)
        draws.append(np.stack([_spearman(x, y, times), _within(x, y, sizes, times)]))
    (low, high), (lowest, highest) = map(
        _bounds, np.concatenate([np.empty((2, 0)), *draws], axis=1)
    )
    if lowest is not None and highest is not None and "within" in extra:
        extra |= {"within_low": lowest, "within_high": highest}
    return Summary(value, low, high, extra=extra)


def _bounds(values: Floats) -> tuple[float | None, float | None]:
    known = values[~np.isnan(values)]
    if not len(known):
        return None, None
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def _spearman(x: Floats, y: Floats, times: Floats) -> Floats:
    """Return Spearman's correlation (R,) of (N,) values, each repeated ``times`` (R, N)."""
    return _correlation(_ranks(x, times), _ranks(y, times), times)


def _within(x: Floats, y: Floats, sizes: NDArray[np.int64], times: Floats) -> Floats:
    """Return the same (R,) of ranks within classes, rows of one class side by side."""
    ends = np.cumsum(sizes).tolist()
    ranked = []
    for values in (x, y):
        parts = [
            (2.0 * _ranks(values[end - n : end], times[:, end - n : end]) - n - 1.0) / max(1, n - 1)
            for end, n in zip(ends, sizes.tolist(), strict=True)
        ]
        ranked.append(np.concatenate(parts, axis=1))
    return _correlation(ranked[0], ranked[1], times)


def _ranks(values: Floats, times: Floats) -> Floats:
    """Return ranks (R, N), from 1, of (N,) values, each repeated ``times`` (R, N).

    Ties have their mean rank. The values are sorted once for all resamples.
    """
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    count = np.add.reduceat(times[:, order], starts, axis=1)
    found: Floats = (np.cumsum(count, axis=1) - (count - 1.0) / 2.0)[:, group]
    return found


def _correlation(a: Floats, b: Floats, times: Floats) -> Floats:
    """Return Pearson's weighted correlation (R,) of rows (R, N), NaN without variation."""
    total = times.sum(1, keepdims=True)
    a = a - (a * times).sum(1, keepdims=True) / total
    b = b - (b * times).sum(1, keepdims=True) / total
    scale = np.sqrt((a * a * times).sum(1) * (b * b * times).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.where(scale > 0, (a * b * times).sum(1) / scale, np.nan)
    return found


def _normal_scores(values: Tensor) -> Floats:
    """Return normal quantiles of ranks, (N,); NaN counts as the middle."""
    x = values.double().numpy()
    ranks = rankdata(x, nan_policy="omit") / ((~np.isnan(x)).sum() + 1.0)
    scores: Floats = np.nan_to_num(norm.ppf(ranks))
    return scores


def _less_class_mean(rows: Floats, groups: NDArray[Any]) -> Floats:
    """Return (N, D): rows less the mean of their class."""
    found = rows.copy()
    for label in np.unique(groups):
        own = groups == label
        found[own] -= found[own].mean(0)
    return found


def _unit_ranks(x: Floats) -> Floats:
    """Return ranks scaled to [0, 1], 1/2 if there is one; NaN stays."""
    ranks: Floats = rankdata(x, nan_policy="omit")
    n = int((~np.isnan(x)).sum())
    return (ranks - 1.0) / (n - 1) if n > 1 else ranks - 0.5
