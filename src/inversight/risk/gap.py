"""The leakage gap: how much more is recovered of private images than of holdout images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

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

    The interval (95 %) resamples private and holdout images within their classes, ``bootstrap`` times;
    it leaves out the attack's own randomness and that images compete for reconstructions, and is too
    short for classes of a few images. ``p_value`` is exact for any number of images: the fraction of
    ``bootstrap`` random exchanges of private and holdout images within classes that give a gap at least
    as large. Like DDCS the gap is in units of 1 / distance and dominated by the nearest pairs.

    It does not show which image leaked, nor what the target learnt of a class as a whole.

    Raises:
        InputError: see :func:`inversight.scores.checks.check_pair`.
        ConfigError: floor, memory or bootstrap out of range.
    """
    real, made = as_pair(private, reconstructions)
    unseen = as_features(holdout, "holdout")
    check_pair(unseen, made, by_class=False, role="holdout")
    return leakage_gap_of(
        assign(real, made, memory=memory), assign(unseen, made, memory=memory),
        labels=real.labels.cpu(), ids=real.ids, holdout_labels=unseen.labels.cpu(),
        holdout_ids=unseen.ids, floor=floor, bootstrap=bootstrap, rng=rng,
    )  # fmt: skip


def leakage_gap_of(
    private: Assignment,
    holdout: Assignment,
    *,
    labels: Tensor,
    ids: Sequence[str],
    holdout_labels: Tensor,
    holdout_ids: Sequence[str],
    floor: float = 1e-6,
    bootstrap: int = 1000,
    rng: torch.Generator | None = None,
) -> Summary:
    """Return :func:`leakage_gap` from assignments of the same reconstructions to either set.

    Raises:
        ConfigError: floor or bootstrap out of range.
    """
    scores = best_scores(_over_union(private, holdout, ids, holdout_ids), floor=floor)
    private_scores = _by_class(scores[: len(ids)], private, labels, ids)
    holdout_scores = _by_class(scores[len(ids) :], holdout, holdout_labels, holdout_ids)
    shared = sorted(private_scores.keys() & holdout_scores.keys())
    if not shared:
        return Summary(
            None, reason="no class has private images, holdout images and reconstructions"
        )
    pairs = [(private_scores[label], holdout_scores[label]) for label in shared]
    images, unseen = (sum(map(len, side)) for side in zip(*pairs, strict=True))
    # Each value times its weight, so that the mean over all of them is the gap.
    total = (images + unseen) / images
    parts = [
        part
        for own, other in pairs
        for part in (own * total, -other * (len(own) / len(other)) * total)
    ]
    sizes = torch.tensor([len(part) for part in parts])
    rng = rng or default_rng()
    found = mean_summary(torch.cat(parts), sizes, resamples=bootstrap, rng=rng, extra={})
    gap = float(found.value or 0.0)
    mean = float(torch.cat([own for own, _ in pairs]).mean())
    extra: dict[str, float | int | str] = {
        "private": mean,
        "holdout": mean - gap,
        "private_images": images,
        "holdout_images": unseen,
    }
    if bootstrap:
        extra["p_value"] = _p_value(pairs, gap, bootstrap, rng)
    return replace(found, extra=extra)


def _p_value(
    pairs: Sequence[tuple[Tensor, Tensor]], gap: float, times: int, rng: torch.Generator
) -> float:
    """Return how often a random exchange of private and holdout scores gives ``gap`` or more."""
    images = sum(len(own) for own, _ in pairs)
    found = torch.zeros(times, dtype=torch.float64)
    size = 0.0
    for own, other in pairs:
        both = torch.cat([own, other])
        size += float(both.sum()) / images
        for part in torch.arange(times).split(max(1, _SCRATCH // len(both))):
            keys = torch.rand(len(part), len(both), generator=rng, dtype=torch.float64)
            chosen = both[keys.argsort(1)[:, : len(own)]].sum(1)
            rest = (both.sum() - chosen) * (len(own) / len(other))
            found[part] += (chosen - rest) / images
    # Exchanges of equal scores give the gap itself, up to rounding.
    return float((1 + (found >= gap - 1e-9 * size).sum()) / (times + 1))


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
    scores: Tensor, assignment: Assignment, labels: Tensor, ids: Sequence[str]
) -> dict[int, Tensor]:
    """Return the scores of classes that have reconstructions, each in the order of its ids."""
    order = rank(ids).argsort()
    order = order[assignment.nearest_row[order] >= 0]
    return {int(label): scores[order[labels[order] == label]] for label in labels[order].unique()}
