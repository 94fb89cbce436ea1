"""Exposure: how much nearer reconstructions come to an image because the model was trained on it.

Shadow models are trained on random halves of private and holdout images and attacked alike, so that every
image is compared with itself: models trained with it against models trained without it. In nearness alone,
how typical an image is hides what training on it changes.

Counterfactual memorisation (Feldman and Zhang 2020; Zhang et al. 2023) asks the same of accuracy, LiRA
(Carlini et al. 2022) and RMIA (Zarifzadeh et al. 2024) of membership. Not to be confused with the
exposure of a canary in Carlini et al. 2019, a rank in bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from inversight.core.seeding import draw_seed
from inversight.risk.design import Groups, StratifiedHalves
from inversight.risk.estimates import (
    columns_of,
    exposed_summary,
    mean_summary,
    over_pairs,
    pair_weights,
    paired,
)
from inversight.risk.experiment import (
    LEAST_TO_FLAG,
    ArrayOf,
    Experiment,
    Floats,
    as_experiment,
    centre,
    check_complementary,
    check_halves,
    check_options,
    looks_factor,
    nanmean,
    over_units,
    redraw_sums,
)
from inversight.scores.bootstrap import default_rng
from inversight.scores.result import Summary
from inversight.settings import DEFAULT_FDR


@dataclass(frozen=True)
class Exposure:
    """The result of :func:`exposure`.

    summary: by key of ``metrics.json``. per_sample: by column of ``samples.parquet``, (N,) each, in the row
    order given. per_group: the same columns for each group, in the order of ``groups``, with ``images`` and
    ``private_images``, int64 counts; empty without groups. differences: (P, N) float64, D of each pair;
    (0, N) where models are not paired.
    """

    summary: Mapping[str, Summary]
    per_sample: Mapping[str, Tensor]
    per_group: Mapping[str, Tensor]
    groups: tuple[str, ...]
    differences: Tensor


def exposure(
    log_distances: ArrayOf,
    membership: ArrayOf,
    labels: ArrayOf,
    groups: Groups | None = None,
    *,
    twins: Tensor | None = None,
    private: ArrayOf | None = None,
    fdr: float = DEFAULT_FDR,
    redraws: int = 9999,
    looks: int = 1,
    further_looks: bool = False,
    rng: torch.Generator | None = None,
) -> Exposure:
    """Return how many times nearer reconstructions come to each image because it was trained on.

    From K shadow models in pairs of complementary halves (:func:`inversight.risk.design.draw_design`),
    attacked with the same prior, settings and random numbers. Log distances are centred on the mean of
    the model over all images of the class. An image's D in a pair is its value in the model trained
    without it less that in the model trained with it; its effect e is the mean of D over pairs.

    ``per_sample``, each (N,), NaN where nothing is known:

    - ``exposure``: exp(e) > 0; 1: no change, 1.24: 1.24 times nearer, in squared distance, when trained
      on. ``exposure_low``, ``exposure_high``: its 95 % interval, two-sided.
    - ``exposure_shrunken``: exp of e shrunken to the mean over images (normal prior fitted by moments).
      The largest raw values are overestimates; order by this one, ties by ``exposure``.
    - ``exposure_p``: in (0, 1], lower is more exposed: one-sided moderated t-test (Smyth 2004) of e > 0
      on the image's P differences. No image is compared with another one.
    - ``exposure_q``: q-value (Benjamini and Hochberg 1995) among private images that can be judged. NaN
      for all others: holdout images, classes of fewer than four units, fewer than eight models.
    - ``exposed``: bool, ``exposure_q <= fdr``; unknown where ``exposure_q`` is NaN.

    ``summary``:

    - ``exposed``: in [0, 1], higher is more leakage: the fraction of private images that are exposed, of
      ``images`` that can be judged. ``detectable``: the factor at which one image alone is flagged with
      80 % power, that is at level ``fdr`` / ``images``. ``reliability``: in [0, 1], how far the order of
      images can be trusted, see :func:`inversight.risk.estimates.reliability`.
    - ``exposure_mean``: above 0, higher is more leakage, 1 with none: exp of the mean of e over private
      images. The interval is Student's t over the means of pairs. ``p_value``: the fraction of ``redraws``
      of the whole design that give at least this mean, distances unchanged. It is exact if no image's
      membership matters, whatever private and holdout images are like. ``detectable``: the factor found
      at p <= 0.05 with 80 % power, from the spread over redraws.
    - ``exposure_auc``: in [0, 1], higher is more leakage, 0.5 with none: the fraction of pairs in which
      the model trained on the image comes nearer (ties count half), mean over private images. The
      interval is t over pairs.

    All tests are one-sided, since the claim is that images come nearer. What an image's test compares is
    training on it *instead of* a classmate, since halves are balanced within classes. Later looks at a
    growing number of models cost error rate: see :func:`looks_factor`.

    With groups, ``per_group`` tests the mean D of all images of a group in the same way, and
    Benjamini-Hochberg runs over the groups that have private images. Where each class is one group,
    images are drawn alone and the p-value of a group comes from ``redraws``.

    Args:
        log_distances: (K, N) natural logarithms of the nearest distances to reconstructions of the class,
            floored; NaN where the model has no reconstruction of the class: the pair is left out.
        membership: (K, N) bool. Rows 2j and 2j + 1 are complementary.
        labels: (N,) integers.
        groups: images that are drawn whole, see :func:`inversight.risk.design.make_units`.
        twins: likewise.
        private: (N,) bool; None: all images.
        fdr: accepted fraction of false alarms among exposed images, in (0, 1).
        looks: number of this look at the models, 1 for the first.
        further_looks: whether more models may be added after it.
        rng: for redraws; default: seed 0.

    Raises:
        DesignError: (a ``ValueError`` and an ``InputError``) an odd number of models, fewer than four,
            rows that are not complementary or not balanced, no class of two units.
        InputError: shapes that differ, infinite values.
        ConfigError: options out of range, a group with images of two classes.
    """
    check_options(fdr, redraws)
    factor = looks_factor(looks, further_looks)
    experiment = as_experiment(log_distances, membership, labels, groups, twins, private)
    check_halves(experiment)
    centred = centre(experiment)
    sign = np.where(experiment.membership[0::2], -1.0, 1.0)
    # Without less with training on the image, whichever model of the pair that is.
    raw = centred[0::2] - centred[1::2]
    differences = sign * raw
    found, variances = paired(differences, factor)
    private_known = experiment.private & np.isfinite(found.effect)
    weight = pair_weights(differences, private_known)
    everything = np.ones(len(experiment.private), dtype=bool)
    class_weight = pair_weights(differences, everything, experiment.classes)
    unit = experiment.units.unit.numpy()
    halves = StratifiedHalves(torch.from_numpy(experiment.classes), experiment.units.unit)
    totals, by_part = redraw_sums(
        halves,
        over_units(weight * raw, unit),
        over_units(class_weight * raw, unit) if experiment.units.by_image else None,
        experiment.classes[np.unique(unit, return_index=True)[1]],
        redraws=redraws,
        seed=draw_seed(rng or default_rng()),
    )
    models = len(centred)
    enough = 2 * np.isfinite(differences).sum(0) >= LEAST_TO_FLAG
    judged = private_known & experiment.large & enough
    columns = columns_of(found, judged, fdr)
    means = len(raw) * (np.nan_to_num(differences) * weight).sum(1)
    extra: dict[str, float | int | str] = {"models": models, "pairs": len(raw)}
    wins = np.where(differences > 0, 1.0, np.where(differences < 0, 0.0, 0.5))
    summary = {
        "exposed": exposed_summary(
            columns, judged, experiment.private, fdr, models, found, variances, factor
        ),
        "exposure_mean": mean_summary(means, totals, factor, extra, bool(private_known.any())),
        "exposure_auc": over_pairs(
            len(raw) * (wins * weight).sum(1), extra, bool(private_known.any())
        ),
    }
    return Exposure(
        summary,
        columns,
        _groups(differences, class_weight, experiment, by_part, factor, fdr),
        experiment.units.names,
        torch.from_numpy(differences),
    )


def membership_auc(
    losses: ArrayOf, membership: ArrayOf, *, private: ArrayOf | None = None
) -> Summary:
    """In [0, 1], higher is more leakage, 0.5 with none: how well the loss tells members from others.

    The fraction of pairs in which the model trained on the image has the lower loss on it (ties count
    half), mean over private images; the interval is t over pairs. It is what membership inference with
    these models can see (losses are not centred), a reference for ``exposure_auc``.

    Args:
        losses: (K, N). membership, private: see :func:`exposure`.

    Raises:
        DesignError, InputError: see :func:`exposure`.
    """
    count = np.shape(membership)[-1] if np.ndim(membership) else 0
    # Halves within classes are not checked: losses need no classes.
    experiment = as_experiment(
        losses, membership, np.zeros(max(count, 1), np.int64), private=private, name="losses"
    )
    check_complementary(experiment.membership)
    sign = np.where(experiment.membership[0::2], -1.0, 1.0)
    differences = sign * (experiment.values[0::2] - experiment.values[1::2])
    known = experiment.private & np.isfinite(differences).any(0)
    wins = np.where(differences > 0, 1.0, np.where(differences < 0, 0.0, 0.5))
    means = len(wins) * (wins * pair_weights(differences, known)).sum(1)
    return over_pairs(means, {"models": 2 * len(wins), "pairs": len(wins)}, bool(known.any()))


def _groups(
    differences: Floats,
    weight: Floats,
    experiment: Experiment,
    by_part: Floats,
    factor: int,
    fdr: float,
) -> dict[str, Tensor]:
    """Return ``per_group``; ``by_part`` (redraws, G) where classes are groups."""
    units = experiment.units
    if not units.names:
        return {}
    group = units.group.numpy()
    rows = [np.flatnonzero(group == g) for g in range(len(units.names))]
    means = np.stack([nanmean(differences[:, r], 1) for r in rows], 1)
    found, _ = paired(means, factor)
    if units.by_image:
        sums = (weight * np.nan_to_num(differences)).sum(0)
        value = np.array([sums[r].sum() for r in rows])
        reached = (by_part >= value - 1e-9 * np.abs(by_part).max(0)).sum(0)
        p = np.minimum(1.0, factor * (1.0 + reached) / (len(by_part) + 1))
        found = replace(found, p=np.where(np.isfinite(found.effect), p, np.nan))
    private = np.array([int(experiment.private[r].sum()) for r in rows])
    first = np.array([r[0] for r in rows])
    enough = 2 * np.isfinite(means).sum(0) >= LEAST_TO_FLAG
    judged = (private > 0) & experiment.large[first] & enough
    return {
        **columns_of(found, judged, fdr),
        "images": torch.tensor([len(r) for r in rows]),
        "private_images": torch.from_numpy(private),
    }
