"""Which private images are likely to be exposed, told from signals alone, and how well that works.

Two predictors. :func:`expected_exposure` needs no attack: it takes each signal in the direction that
was written down for it. :func:`learn` learns from a few attacked classes how signals go with the
measured distance, and speaks of other classes. :func:`agreement` says how far either, or a signal
alone, agrees with what an attack measured.
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
from inversight.scores.bootstrap import default_rng
from inversight.scores.result import Summary

PENALTIES = (1.0, 10.0, 100.0, 1000.0)
"""Ridge penalties to choose from."""

FOLDS = 5
"""Groups of classes, at most, that are left out in turn."""

FEWEST_CLASSES, FEWEST_IMAGES = 2, 10
"""Attacked classes, and images in them, without which nothing is learned."""

_SCRATCH = 1 << 22
"""Numbers held at once in the temporaries of a bootstrap: 32 MiB of float64."""

Floats = NDArray[np.float64]


def expected_exposure(values: Mapping[str, Tensor]) -> Tensor:
    """In [0, 1], (N,) float64, higher is expected to be more exposed; NaN where no signal is known.

    Ranks of all N images in each signal, scaled to [0, 1] and turned to its sign in ``SIGNALS``; their
    mean within each family of signals, then the mean over families, so that four ways of saying how
    sure the target is count as one. Ranks are over all images, not within classes: which classes are
    exposed is part of the question. values: signals by name, each (N,); other names are not read.
    """
    families: dict[str, list[Floats]] = {}
    for name, signal in SIGNALS.items():
        if name in values:
            turned = _turned(values[name], signal.sign)
            families.setdefault(signal.family, []).append(_unit_ranks(turned))
    if not families:
        raise InputError("triage: no signal is there to tell images by")
    means = [_mean(np.stack(parts)) for parts in families.values()]
    return torch.from_numpy(_mean(np.stack(means)))


@dataclass(frozen=True)
class Learned:
    """What was learned from attacked classes.

    exposure: (N,) float64, higher is more exposed: minus the log distance that is expected, up to a
    constant. classes: those it was learned from, of which it must not be judged. slopes: of each
    signal, change of the log distance for one standard deviation of its normal score. penalty: of the
    ridge regression.
    """

    exposure: Tensor
    classes: frozenset[str]
    slopes: Mapping[str, float]
    penalty: float


def learn(
    values: Mapping[str, Tensor], nearest: Tensor, labels: Sequence[str], *, folds: int = FOLDS
) -> Learned:
    """Learn from the classes that were attacked what to expect of all N images.

    Ridge regression of the log nearest distance on signals, each as the normal score of an image's rank
    among all N images (which needs no attack). Distances and signals are both taken less their class's
    mean: from a few classes can be learned how images of one class differ, hardly why one class is
    nearer than another, so that the slopes found within classes are used between them too. The penalty
    is the one of ``PENALTIES`` that predicts best in attacked classes left out of the fit, in ``folds``
    groups or one by one. values: each (N,); nearest: (N,) float64 >= 0, NaN where nothing was attacked;
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
        Ridge(fit_intercept=False),
        {"alpha": list(PENALTIES)},
        scoring="neg_mean_squared_error",
        cv=GroupKFold(min(folds, count)),
    )
    search.fit(
        _less_class_mean(scores[known], groups),
        _less_class_mean(target, groups)[:, 0],
        groups=groups,
    )
    slopes = search.best_estimator_.coef_
    return Learned(
        torch.from_numpy(-(scores @ slopes)),
        frozenset(groups.tolist()),
        dict(zip(names, map(float, slopes), strict=True)),
        float(search.best_params_["alpha"]),
    )


def learned_elsewhere(
    values: Mapping[str, Tensor], nearest: Tensor, labels: Sequence[str], *, folds: int = FOLDS
) -> Tensor:
    """(N,) float64: the exposure that :func:`learn` expects of each class from *other* classes alone.

    Attacked classes are left out in ``folds`` groups, or one by one if there are fewer; each time all
    of :func:`learn`, the penalty too, sees the distances of the others only. NaN without a distance.

    Raises:
        InputError: fewer than three attacked classes, or too few images.
    """
    found = torch.full((len(labels),), float("nan"), dtype=torch.float64)
    rows = nearest.isfinite().nonzero().squeeze(1)
    groups = np.array(labels)[rows.numpy()]
    count = len(set(groups.tolist()))
    if count < FEWEST_CLASSES + 1:
        raise InputError(
            f"triage: judging what was learned needs at least {FEWEST_CLASSES + 1} attacked classes, "
            f"found {count}"
        )
    for _, test in GroupKFold(min(folds, count)).split(groups, groups=groups):
        judged = rows[torch.from_numpy(test)]
        hidden = nearest.clone()
        hidden[judged] = float("nan")
        found[judged] = learn(values, hidden, labels, folds=folds).exposure[judged]
    return found


def agreement(
    predicted: Mapping[str, Tensor],
    measured: Tensor,
    labels: Sequence[str],
    *,
    resamples: int = 500,
    rng: torch.Generator | None = None,
) -> dict[str, Summary]:
    """Spearman's correlation of each predictor with what was measured, in [-1, 1], higher is better.

    With ties in both ranked by their mean. ``within`` beside it leaves out what distinguishes classes:
    the correlation of ranks within classes, which are scaled to [-1, 1]. Both come with 95 % intervals (the
    other as ``within_low`` and ``within_high``) by resampling images within their classes. ``images``: how
    many were compared; those without either value are left out.

    predicted: by name, each (N,), higher is more exposed; measured: (N,), higher is more exposed;
    labels: N class names. Null with a reason for fewer than three images or no variation.
    """
    rng = rng or default_rng()
    state = rng.get_state()
    found = {}
    for name, values in predicted.items():
        rng.set_state(state)  # the same resamples for each, so that they compare
        found[name] = _agreement(values, measured, labels, resamples, rng)
    return found


def turned(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each signal turned so that higher is expected to be more exposed, for :func:`agreement`."""
    return {
        name: torch.from_numpy(_turned(values[name], signal.sign))
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
    start = np.repeat(np.cumsum(sizes) - sizes, sizes)
    size = np.repeat(sizes, sizes)
    draws: list[tuple[Floats, Floats]] = []
    at_once = max(1, _SCRATCH // (8 * len(x)))
    for done in range(0, resamples, at_once):
        shape = min(at_once, resamples - done), len(x)
        uniform = torch.rand(shape, generator=rng, dtype=torch.float64).numpy()
        index = (uniform * size).astype(np.int64) + start
        index += len(x) * np.arange(len(index))[:, None]
        times = np.bincount(index.ravel(), minlength=index.size).reshape(shape).astype(np.float64)
        draws.append((_spearman(x, y, times), _within(x, y, sizes, times)))
    low = high = None
    if draws:
        low, high = _bounds(np.concatenate([d[0] for d in draws]))
        lowest, highest = _bounds(np.concatenate([d[1] for d in draws]))
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
    """Spearman's correlation (R,) of (N,) values, each taken so many ``times`` (R, N)."""
    return _correlation(_ranks(x, times), _ranks(y, times), times)


def _within(x: Floats, y: Floats, sizes: NDArray[np.int64], times: Floats) -> Floats:
    """The same (R,) of ranks within classes, rows of one class side by side."""
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
    """Ranks (R, N), from 1, of (N,) values among themselves, each taken so many ``times`` (R, N).

    Ties have their mean rank. Sorted once, however many resamples there are.
    """
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    count = np.add.reduceat(times[:, order], starts, axis=1)
    found: Floats = (np.cumsum(count, axis=1) - (count - 1.0) / 2.0)[:, group]
    return found


def _correlation(a: Floats, b: Floats, times: Floats) -> Floats:
    """Pearson's correlation of each pair of rows (R, N), weighted; (R,), NaN without variation."""
    total = times.sum(1, keepdims=True)
    a = a - (a * times).sum(1, keepdims=True) / total
    b = b - (b * times).sum(1, keepdims=True) / total
    scale = np.sqrt((a * a * times).sum(1) * (b * b * times).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.where(scale > 0, (a * b * times).sum(1) / scale, np.nan)
    return found


def _normal_scores(values: Tensor) -> Floats:
    """Normal quantiles of ranks, (N,); NaN counts as the middle."""
    x: Floats = values.double().numpy()
    scores = np.zeros(len(x))
    known = ~np.isnan(x)
    if known.any():
        scores[known] = norm.ppf(rankdata(x[known]) / (known.sum() + 1.0))
    return scores


def _less_class_mean(rows: Floats, groups: NDArray[Any]) -> Floats:
    """(N, D): rows less the mean of their class's."""
    found = rows.copy()
    for label in np.unique(groups):
        own = groups == label
        found[own] -= found[own].mean(0)
    return found


def _unit_ranks(x: Floats) -> Floats:
    """Ranks scaled to [0, 1], 1/2 if all are equal; NaN stays."""
    found = np.full(len(x), np.nan)
    known = ~np.isnan(x)
    n = int(known.sum())
    if n:
        found[known] = (rankdata(x[known]) - 1.0) / (n - 1) if n > 1 else 0.5
    return found


def _mean(rows: Floats) -> Floats:
    """Mean over rows of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(rows)
    count = known.sum(0)
    with np.errstate(invalid="ignore"):
        found: Floats = np.where(known, rows, 0.0).sum(0) / count
    return found


def _turned(values: Tensor, sign: int) -> Floats:
    found: Floats = values.double().numpy() * float(sign)
    return found
