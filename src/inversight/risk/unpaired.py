"""Exposure from models that somebody has already, such as the in and out models of LiRA."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t

from inversight.core.seeding import draw_seed
from inversight.risk.estimates import (
    Estimates,
    columns_of,
    effect_summary,
    exposed_summary,
    nothing,
    one_sided,
)
from inversight.risk.experiment import (
    LEAST_TO_FLAG,
    ArrayOf,
    Bools,
    Floats,
    as_experiment,
    centre,
    check_options,
    looks_factor,
)
from inversight.risk.exposure import Exposure
from inversight.risk.moderation import Moderated, moderate
from inversight.scores.bootstrap import default_rng
from inversight.scores.result import Summary
from inversight.settings import DEFAULT_FDR

_SCRATCH = 1 << 21
"""Numbers held at once in each temporary."""


def unpaired_exposure(
    log_distances: ArrayOf,
    membership: ArrayOf,
    labels: ArrayOf,
    *,
    private: ArrayOf | None = None,
    fdr: float = DEFAULT_FDR,
    redraws: int = 9999,
    looks: int = 1,
    further_looks: bool = False,
    rng: torch.Generator | None = None,
) -> Exposure:
    """Return exposure from models whose training sets are no pairs of halves, of any number K >= 4.

    Membership may be random subsets of any size, with different numbers of models for each image. Use
    :func:`inversight.risk.exposure.exposure` for halves: it sees more, and the tests here are wrong for
    them, since the halves of a pair are dependent. Columns and summaries are the same but for:

    - An image's effect e is the mean of its centred log distance over models trained without it less the
      mean over models trained with it. Its test is a moderated two-sample t, one-sided. It takes models
      as independent. Images with fewer than four models on either side are not flagged.
    - ``exposure_mean``: ``p_value`` is the fraction of ``redraws`` random assignments of the training sets
      to the models, distances unchanged, that give at least this mean. It is exact if no image's
      membership matters and the models differ by nothing but independent random numbers (initial weights,
      order of batches), however the training sets were chosen. The interval is a jackknife over models.
    - ``exposure_auc``: over all pairs of a model trained with and one trained without the image.

    Args:
        log_distances: (K, N). For this and the following arguments see
            :func:`inversight.risk.exposure.exposure`.

    Raises:
        DesignError: (a ``ValueError``) fewer than four models, no class of two images.
        InputError: shapes that differ, infinite values.
        ConfigError: options out of range.
    """
    check_options(fdr, redraws)
    factor = looks_factor(looks, further_looks)
    experiment = as_experiment(log_distances, membership, labels, private=private)
    values, member = centre(experiment), experiment.membership
    found, moderated, least = _two_sample(values, member, factor)
    chosen = experiment.private & np.isfinite(found.effect)
    judged = chosen & experiment.large & (2 * least >= LEAST_TO_FLAG) & np.isfinite(found.p)
    columns = columns_of(found, judged, fdr)
    models = len(values)
    mean = auc = nothing({"models": models})
    if chosen.any():
        own, sides = values[:, chosen], member[:, chosen]
        seed = draw_seed(rng or default_rng())
        null = _permuted(own, sides, redraws, seed)
        mean = _mean(own, sides, null, factor)
        auc = _auc(own, sides)
    exposed = exposed_summary(
        columns, judged, experiment.private, fdr, models, found, moderated, factor
    )
    return Exposure(
        {"exposed": exposed, "exposure_mean": mean, "exposure_auc": auc},
        columns,
        {},
        (),
        torch.empty(0, values.shape[1], dtype=torch.float64),
    )


def _two_sample(
    values: Floats, member: Bools, factor: int
) -> tuple[Estimates, Moderated, NDArray[np.int64]]:
    """Return estimates, variances and the number of models on each image's smaller side, (N,)."""
    known = np.isfinite(values)
    counts, means = [], []
    squares = np.zeros(values.shape[1])
    for side in (known & member, known & ~member):
        count = side.sum(0)
        mean = np.where(side, values, 0.0).sum(0) / np.where(count > 0, count, np.nan)
        squares += np.nan_to_num(np.where(side, values - mean, 0.0) ** 2).sum(0)
        counts.append(count)
        means.append(mean)
    with_it, without = counts
    least = np.minimum(with_it, without)
    freedom = with_it + without - 2
    effect = means[1] - means[0]
    variances = np.where((freedom > 0) & (least > 0), squares / np.maximum(freedom, 1), np.nan)
    moderated = moderate(variances, np.maximum(freedom, 1.0))
    error = np.sqrt(moderated.variance * (1 / np.maximum(with_it, 1) + 1 / np.maximum(without, 1)))
    # Without variance: that the models with the image are the nearest ones by chance.
    ways = np.array([math.comb(a + b, a) for a, b in zip(with_it, without, strict=True)], float)
    p = one_sided(effect, error, moderated.freedom, least=1 / ways)
    return (
        Estimates(effect, error, moderated.freedom, np.minimum(p * factor, 1.0)),
        moderated,
        least,
    )


def _effects(values: Floats, member: Floats) -> Floats:
    """Return means (B,) over images of out less in, for values (K, N) and membership (B, K, N).

    Images with no model on one side are left out.
    """
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    inside = np.einsum("bkn,kn->bn", member, known.astype(float))
    total = np.einsum("bkn,kn->bn", member, filled)
    outside, rest = known.sum(0) - inside, filled.sum(0) - total
    both = (inside > 0) & (outside > 0)
    effect = rest / np.maximum(outside, 1) - total / np.maximum(inside, 1)
    return np.asarray(np.where(both, effect, 0.0).sum(1) / np.maximum(both.sum(1), 1))


def _permuted(values: Floats, member: Bools, redraws: int, seed: int) -> Floats:
    """Return the means of ``redraws`` random assignments of rows of membership to rows of values."""
    rng = np.random.default_rng(seed)
    out = np.empty(redraws)
    step = max(1, _SCRATCH // member.size)
    for start in range(0, redraws, step):
        rows = slice(start, min(start + step, redraws))
        order = rng.random((rows.stop - start, len(member))).argsort(1)
        out[rows] = _effects(values, member[order].astype(float))
    return out


def _mean(values: Floats, member: Bools, null: Floats, factor: int) -> Summary:
    """Return ``exposure_mean`` of images (K, N)."""
    models = len(values)
    inside = member.astype(float)
    value = float(_effects(values, inside[None])[0])
    each = np.array([
        _effects(np.delete(values, k, 0), np.delete(inside, k, 0)[None])[0] for k in range(models)
    ])  # fmt: skip
    return effect_summary(value, _jackknife(each), null, factor, {"models": models})


def _auc(values: Floats, member: Bools) -> Summary:
    """Return ``exposure_auc`` of images (K, N): all models without against all models with an image."""
    models, images = values.shape
    known = np.isfinite(values)
    inside, outside = known & member, known & ~member
    wins = np.zeros((2, models, images))
    for k in range(models):
        further = np.where(values > values[k], 1.0, np.where(values == values[k], 0.5, 0.0))
        # Of model k with the image: wins over models without it; and of model k without it: over it.
        wins[0, k] = np.where(inside[k], (further * outside).sum(0), 0.0)
        wins[1, k] = np.where(outside[k], ((1.0 - further) * inside).sum(0), 0.0)
    total, ins, outs = wins[0].sum(0), inside.sum(0), outside.sum(0)

    def mean(total: Floats, ins: NDArray[np.int64], outs: NDArray[np.int64]) -> float:
        both = (ins > 0) & (outs > 0)
        return float((total[both] / (ins * outs)[both]).mean()) if both.any() else 0.5

    value = mean(total, ins, outs)
    each = np.array([
        mean(total - wins[:, k].sum(0), ins - inside[k], outs - outside[k]) for k in range(models)
    ])  # fmt: skip
    half = _jackknife(each)
    return Summary(value, max(0.0, value - half), min(1.0, value + half), extra={"models": models})


def _jackknife(each: Floats) -> float:
    """Return half the width of the 95 % interval from values (K,) that leave one model out."""
    n = len(each)
    error = math.sqrt((n - 1) / n * float(((each - each.mean()) ** 2).sum()))
    return float(t.ppf(0.975, n - 1)) * error
