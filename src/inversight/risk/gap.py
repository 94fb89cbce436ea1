"""Gaps between private and holdout images: how much more is recovered, and how much nearer it comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inversight.risk.calibration import (
    SHARED,
    Comparable,
    DistancesLike,
    UnitValues,
    comparable,
)
from inversight.risk.covariates import CovariatesLike
from inversight.risk.units import unit_numbers
from inversight.scores.assignment import Assignment, assign, rank
from inversight.scores.bootstrap import default_rng, mean_summary
from inversight.scores.checks import FeaturesLike, as_features, as_pair, check_pair
from inversight.scores.classwise import TIE
from inversight.scores.ddcs import best_scores
from inversight.scores.result import Summary

_SCRATCH = 1 << 20
"""Numbers held at once in each temporary."""


def leakage_gap(
    private: FeaturesLike,
    holdout: FeaturesLike,
    reconstructions: FeaturesLike,
    *,
    units: tuple[Tensor, Tensor] | None = None,
    floor: float = 1e-6,
    memory: int = 2 << 30,
    bootstrap: int = 1000,
    rng: torch.Generator | None = None,
) -> Summary:
    """In [-1 / floor, 1 / floor], higher is more leakage, about 0 with none.

    Mean DDCS best of private images less that of holdout images of the same class. Each reconstruction
    is assigned over the *union* of both sets, so it counts for one image alone: scored separately, the
    smaller set would look better recovered even without leakage. Classes are weighted by their private
    images; classes without a holdout image or a reconstruction are left out.

    ``units``, (N,) int64 of the private and (M,) int64 of the holdout images: those with equal numbers
    depend on each other (:func:`inversight.risk.units.units_of`). The gap does not change; interval and
    ``p_value`` resample and exchange whole units. None: each image alone.

    The interval (95 %) resamples private and holdout images within their classes, ``bootstrap`` times;
    it leaves out the attack's own randomness and that images compete for reconstructions, and is too
    short for classes of a few images. ``p_value`` is exact for any number of images: the fraction of
    ``bootstrap`` random exchanges of private and holdout images within classes that give a gap at least
    as large. Like DDCS the gap is in units of 1 / distance and dominated by the nearest pairs.

    It does not show which image leaked, nor what the target learnt of a class as a whole.

    Raises:
        InputError: see :func:`inversight.scores.checks.check_pair`; a unit with images of two classes.
        ConfigError: floor, memory or bootstrap out of range.
    """
    real, made = as_pair(private, reconstructions)
    unseen = as_features(holdout, "holdout")
    check_pair(unseen, made, by_class=False, role="holdout")
    return leakage_gap_of(
        assign(real, made, memory=memory), assign(unseen, made, memory=memory),
        labels=real.labels.cpu(), ids=real.ids, holdout_labels=unseen.labels.cpu(),
        holdout_ids=unseen.ids, units=units, floor=floor, bootstrap=bootstrap, rng=rng,
    )  # fmt: skip


def leakage_gap_of(
    private: Assignment,
    holdout: Assignment,
    *,
    labels: Tensor,
    ids: Sequence[str],
    holdout_labels: Tensor,
    holdout_ids: Sequence[str],
    units: tuple[Tensor, Tensor] | None = None,
    floor: float = 1e-6,
    bootstrap: int = 1000,
    rng: torch.Generator | None = None,
) -> Summary:
    """Return :func:`leakage_gap` from assignments of the same reconstructions to either set.

    Raises:
        ConfigError: floor or bootstrap out of range.
        InputError: a unit with images of two classes.
    """
    own_units, other_units = units or (torch.arange(len(names)) for names in (ids, holdout_ids))
    own_units = unit_numbers(own_units, labels, "private")
    other_units = unit_numbers(other_units, holdout_labels, "holdout")
    scores = best_scores(_over_union(private, holdout, ids, holdout_ids), floor=floor)
    private_scores = _by_class(scores[: len(ids)], private, labels, ids, own_units)
    holdout_scores = _by_class(
        scores[len(ids) :], holdout, holdout_labels, holdout_ids, other_units
    )
    shared = sorted(private_scores.keys() & holdout_scores.keys())
    if not shared:
        return Summary(
            None, reason="no class has private images, holdout images and reconstructions"
        )
    pairs = [(private_scores[label], holdout_scores[label]) for label in shared]
    images, unseen = (sum(len(one.scores) for one in side) for side in zip(*pairs, strict=True))
    counted, held = (sum(len(one.sums) for one in side) for side in zip(*pairs, strict=True))
    # Each value times its weight, so that the mean over all of them is the gap.
    total = (counted + held) / images
    parts = [
        part
        for own, other in pairs
        for part in (
            own.values * (len(own.scores) / len(own.sums)) * total,
            -other.values * (len(own.scores) / len(other.sums)) * total,
        )
    ]
    sizes = torch.tensor([len(part) for part in parts])
    rng = rng or default_rng()
    found = mean_summary(
        torch.cat(parts), sizes, resamples=bootstrap, rng=rng, extra={}, collapse=False
    )
    gap = float(found.value or 0.0)
    mean = float(torch.cat([own.scores for own, _ in pairs]).mean())
    extra: dict[str, float | int | str] = {
        "private": mean,
        "holdout": mean - gap,
        "private_images": images,
        "holdout_images": unseen,
    }
    if counted < images or held < unseen:
        extra |= {"private_units": counted, "holdout_units": held}
    if bootstrap:
        extra["p_value"] = _p_value(pairs, gap, bootstrap, rng)
    return replace(found, extra=extra)


def distance_gap(
    private: DistancesLike,
    holdout: DistancesLike,
    *,
    units: tuple[Tensor, Tensor] | None = None,
    covariates: CovariatesLike | None = None,
    floor: float = 1e-6,
    bootstrap: int = 1000,
    rng: torch.Generator | None = None,
) -> Summary:
    """In standard deviations, higher is more leakage, about 0 with none.

    How much nearer reconstructions come to private than to holdout images of the same class: the
    difference of the mean log distances, less what covariates explain, in standard deviations of the
    class. Each unit has the weight of one image, and a class with n private and m holdout units the
    weight n m / (n + m), which varies least.

    ``p_value`` is exact: the fraction of ``bootstrap`` random exchanges of private and holdout units
    within classes that give a gap at least as large. All images count alike, while the nearest pairs
    dominate :func:`leakage_gap`, so it sees smaller leaks of many images. The interval (95 %) resamples
    units within classes and sides, ``bootstrap`` times.

    It does not show which image leaked, nor what the target learnt of a class as a whole.

    Args:
        private: nearest distances with labels. For this and the following arguments see
            :func:`inversight.risk.calibrate`.

    Raises:
        ConfigError: floor or bootstrap out of range.
        InputError: see :func:`inversight.risk.calibrate`.
    """
    one = comparable(private, holdout, units=units, covariates=covariates, floor=floor)
    parts = _standardised(one)
    if not parts:
        return Summary(
            None, reason="no class has private images, holdout images and reconstructions"
        )
    weights = [len(a) * len(b) / (len(a) + len(b)) for a, b in parts]
    units_in_all = sum(len(a) + len(b) for a, b in parts)
    scale = units_in_all / sum(weights)
    # Each value times its weight, so that the mean over all of them is the gap.
    values = [
        part
        for (a, b), weight in zip(parts, weights, strict=True)
        for part in (-a * (weight / len(a) * scale), b * (weight / len(b) * scale))
    ]
    rng = rng or default_rng()
    found = mean_summary(
        torch.cat(values), torch.tensor([len(part) for part in values]), resamples=bootstrap,
        rng=rng, extra={}, collapse=False,
    )  # fmt: skip
    extra: dict[str, float | int | str] = {
        "private_units": sum(len(a) for a, _ in parts),
        "holdout_units": sum(len(b) for _, b in parts),
    }
    if one.explained is not None:
        extra["explained"] = one.explained
    if bootstrap:
        extra["p_value"] = _exchanged(parts, bootstrap, rng)
    return replace(found, extra=extra)


def _standardised(one: Comparable) -> list[tuple[Tensor, Tensor]]:
    """Return the units' mean values of either side, of each class in which both sides have one.

    They are in standard deviations from the mean of all units of the class, private or not. The
    class's own variance is joined with that of all classes, which has the weight of ``SHARED`` images.
    """
    classes = []
    for label in one.private.labels.unique().tolist():
        sides = [
            UnitValues.of(side.values[rows], side.units[rows]).mean
            for side in (one.private, one.holdout)
            for rows in [(side.labels == label) & side.values.isfinite()]
        ]
        if min(map(len, sides)):
            both = torch.cat(sides)
            classes.append((sides, both.mean(), float((both - both.mean()).square().sum())))
    freedom = sum(len(a) + len(b) - 1 for (a, b), _, _ in classes)
    pooled = sum(square for _, _, square in classes) / max(1, freedom)
    found = []
    for (a, b), mean, square in classes:
        variance = (SHARED * pooled + square) / (SHARED + len(a) + len(b) - 1)
        deviation = variance**0.5 or 1.0
        found.append(((a - mean) / deviation, (b - mean) / deviation))
    return found


def _exchanged(parts: Sequence[tuple[Tensor, Tensor]], times: int, rng: torch.Generator) -> float:
    """Return how often a random exchange within classes puts units at least as near on the private side."""
    sums = torch.zeros(times, dtype=torch.float64)
    observed = size = 0.0
    for a, b in parts:
        both = torch.cat([a, b])
        observed += float(a.sum())
        size += float(both.abs().sum())
        for part in torch.arange(times).split(max(1, _SCRATCH // len(both))):
            keys = torch.rand(len(part), len(both), generator=rng, dtype=torch.float64)
            sums[part] += both[keys.argsort(1)[:, : len(a)]].sum(1)
    # Exchanges of equal values give the sum itself, up to rounding.
    return float((1 + (sums <= observed + 1e-9 * size).sum()) / (times + 1))


@dataclass(frozen=True)
class _Scores:
    """Scores of the n images of one class on one side, in U units, both in the order of ids.

    scores: (n,). sums: (U,) float64, of each unit's scores. counts: (U,) float64, images of each.
    """

    scores: Tensor
    sums: Tensor
    counts: Tensor

    @property
    def values(self) -> Tensor:
        """Return (U,): a value for each unit whose plain mean is the images' mean.

        It is the linearised ratio of sums and counts (Cochran 1977, section 6.3), so that its variance
        is that of the images' mean when units are drawn.
        """
        share = len(self.sums) / len(self.scores)
        return self.sums * share + self.scores.mean() * (1.0 - self.counts * share)


def _p_value(
    pairs: Sequence[tuple[_Scores, _Scores]], gap: float, times: int, rng: torch.Generator
) -> float:
    """Return how often a random exchange of private and holdout units gives ``gap`` or more."""
    above, images = [], torch.zeros(times, dtype=torch.float64)
    size = 0.0
    for own, other in pairs:
        both, counts = torch.cat([own.sums, other.sums]), torch.cat([own.counts, other.counts])
        size += float(both.sum()) / sum(len(one.scores) for one, _ in pairs)
        found = torch.empty(times, dtype=torch.float64)
        for part in torch.arange(times).split(max(1, _SCRATCH // len(both))):
            keys = torch.rand(len(part), len(both), generator=rng, dtype=torch.float64)
            rows = keys.argsort(1)[:, : len(own.sums)]
            chosen, weight = both[rows].sum(1), counts[rows].sum(1)
            rest = (both.sum() - chosen) * (weight / (counts.sum() - weight))
            found[part] = chosen - rest
            images[part] += weight
        above.append(found)
    gaps = torch.zeros(times, dtype=torch.float64)
    for one in above:
        gaps += one / images
    # Exchanges of equal scores give the gap itself, up to rounding.
    return float((1 + (gaps >= gap - 1e-9 * size).sum()) / (times + 1))


def _over_union(
    private: Assignment, holdout: Assignment, ids: Sequence[str], holdout_ids: Sequence[str]
) -> Assignment:
    """Assign each reconstruction to the nearer of its two images; holdout rows follow private ones."""
    # Among equal distances the id that sorts first wins; of one id on both sides, the holdout's.
    ranks = rank([*holdout_ids, *ids])
    holdout_first = ranks[holdout.owner] < ranks[private.owner + len(holdout_ids)]
    a, b = private.distance, holdout.distance
    tie = (a <= b * (1.0 + TIE)) & (b <= a * (1.0 + TIE))
    to_holdout = torch.where(tie, holdout_first, b < a) & (holdout.owner >= 0)
    return Assignment(
        owner=torch.where(to_holdout, holdout.owner + len(ids), private.owner),
        distance=torch.minimum(a, b),
        nearest=torch.cat([private.nearest, holdout.nearest]),
        nearest_row=torch.cat([private.nearest_row, holdout.nearest_row]),
    )


def _by_class(
    scores: Tensor, assignment: Assignment, labels: Tensor, ids: Sequence[str], units: Tensor
) -> dict[int, _Scores]:
    """Return the scores of classes that have reconstructions."""
    order = rank(ids).argsort()
    order = order[assignment.nearest_row[order] >= 0]
    found = {}
    for label in labels[order].unique():
        rows = order[labels[order] == label]
        unit = unit_numbers(units[rows], labels[rows], "")
        counts = unit.bincount().double()
        sums = torch.zeros_like(counts).index_add_(0, unit, scores[rows].double())
        found[int(label)] = _Scores(scores[rows], sums, counts)
    return found
