"""The leakage gap: how much more is recovered of private images than of unseen ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inversight.scores.assignment import Assignment, assign, rank
from inversight.scores.bootstrap import default_rng, interval_of_means
from inversight.scores.checks import FeaturesLike, as_features, as_pair, check_pair
from inversight.scores.classwise import TIE
from inversight.scores.ddcs import ddcs_of
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

    DDCS, best, of a private image less that of a holdout image of its class, both per image, where
    each reconstruction is assigned over the *union* of both sets and so credits one image alone. A
    class's private images have its holdout images as their baseline whatever the numbers of both, and
    classes count by their private images; classes without a holdout image or a reconstruction are left
    out. Scored each alone, the smaller set would look better recovered with nothing leaked.

    The interval (95 %) resamples private and holdout images within their classes, ``bootstrap`` times;
    it leaves out the attack's own randomness and that images compete for reconstructions, and is too
    short for classes of a few images. ``p_value`` is exact for any number: the share of as many random
    exchanges of private and holdout images within classes, which change no score, that give a gap at
    least as large. Like DDCS the gap is in units of 1 / distance and ruled by the nearest pairs.

    It cannot see which image leaked, nor what the target learnt of a class as a whole.

    Raises:
        InputError: see :func:`inversight.scores.checks.check_pair`.
        ConfigError: floor, memory or bootstrap out of range.
    """
    ours, made = as_pair(private, reconstructions)
    theirs = as_features(holdout, "holdout")
    check_pair(theirs, made, by_class=False, role="holdout")
    return leakage_gap_of(
        assign(ours, made, memory=memory),
        assign(theirs, made, memory=memory),
        labels=ours.labels.cpu(),
        ids=ours.ids,
        holdout_labels=theirs.labels.cpu(),
        holdout_ids=theirs.ids,
        reconstruction_ids=made.ids,
        floor=floor,
        bootstrap=bootstrap,
        rng=rng,
    )


def leakage_gap_of(
    private: Assignment,
    holdout: Assignment,
    *,
    labels: Tensor,
    ids: Sequence[str],
    holdout_labels: Tensor,
    holdout_ids: Sequence[str],
    reconstruction_ids: Sequence[str],
    floor: float = 1e-6,
    bootstrap: int = 1000,
    rng: torch.Generator | None = None,
) -> Summary:
    """:func:`leakage_gap` from assignments of the same reconstructions to either set.

    Raises:
        ConfigError: floor or bootstrap out of range.
    """
    scores = ddcs_of(
        _over_union(private, holdout, ids, holdout_ids),
        labels=torch.cat([labels, holdout_labels]),
        ids=[*(f"private/{name}" for name in ids), *(f"holdout/{name}" for name in holdout_ids)],
        reconstruction_ids=reconstruction_ids,
        floor=floor,
        bootstrap=0,
    ).per_sample["ddcs_best"]
    ours = _by_class(scores[: len(ids)], private, labels, ids)
    theirs = _by_class(scores[len(ids) :], holdout, holdout_labels, holdout_ids)
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return Summary(
            None, reason="no class has private images, holdout images and reconstructions"
        )
    images = sum(len(ours[label]) for label in shared)
    unseen = sum(len(theirs[label]) for label in shared)
    parts = []
    for label in shared:
        # What each value must be multiplied with, so that the mean over all of them is the gap.
        parts.append(ours[label] * (images + unseen) / images)
        weight = len(ours[label]) / len(theirs[label])
        parts.append(-theirs[label] * weight * (images + unseen) / images)
    values = torch.cat(parts)
    rng = rng or default_rng()
    [(low, high)] = interval_of_means(
        values[:, None],
        torch.tensor([len(part) for part in parts]),
        resamples=bootstrap,
        rng=rng,
    )
    mean = float(torch.cat([ours[label] for label in shared]).mean())
    gap = float(values.mean())
    extra: dict[str, float | int | str] = {
        "private": mean,
        "holdout": mean - gap,
        "private_images": images,
        "holdout_images": unseen,
    }
    if bootstrap:
        pairs = [(ours[label], theirs[label]) for label in shared]
        extra["p_value"] = _chance(pairs, gap, bootstrap, rng)
    return Summary(gap, low, high, extra=extra)


def _chance(
    pairs: Sequence[tuple[Tensor, Tensor]], gap: float, times: int, rng: torch.Generator
) -> float:
    """How often exchanging private and holdout scores at random gives ``gap`` or more."""
    images = sum(len(ours) for ours, _ in pairs)
    found = torch.zeros(times, dtype=torch.float64)
    size = 0.0
    for ours, theirs in pairs:
        both = torch.cat([ours, theirs])
        size += float(both.sum()) / images
        for part in torch.arange(times).split(max(1, _SCRATCH // len(both))):
            keys = torch.rand(len(part), len(both), generator=rng, dtype=torch.float64)
            chosen = both[keys.argsort(1)[:, : len(ours)]].sum(1)
            rest = (both.sum() - chosen) * (len(ours) / len(theirs))
            found[part] += (chosen - rest) / images
    # Exchanges of equal scores give the gap itself, but for the last digits.
    return float((1 + (found >= gap - 1e-9 * size).sum()) / (times + 1))


def _over_union(
    private: Assignment, holdout: Assignment, ids: Sequence[str], holdout_ids: Sequence[str]
) -> Assignment:
    """Each reconstruction with the nearer of its two images; holdout rows follow private ones."""
    # Equal distances go to the id that sorts first, of one id on both sides to the holdout's.
    ranks = rank([*holdout_ids, *ids])
    theirs_first = ranks[holdout.owner] < ranks[private.owner + len(holdout_ids)]
    ours, theirs = private.distance, holdout.distance
    tie = (ours <= theirs * (1.0 + TIE)) & (theirs <= ours * (1.0 + TIE))
    held = torch.where(tie, theirs_first, theirs < ours) & (holdout.owner >= 0)
    return Assignment(
        owner=torch.where(held, holdout.owner + len(ids), private.owner),
        distance=torch.minimum(ours, theirs),
        nearest=torch.cat([private.nearest, holdout.nearest]),
        nearest_row=torch.cat([private.nearest_row, holdout.nearest_row]),
    )


def _by_class(
    scores: Tensor, assignment: Assignment, labels: Tensor, ids: Sequence[str]
) -> dict[int, Tensor]:
    """Scores of the classes that have reconstructions, each in the order of its ids."""
    order = rank(ids).argsort()
    order = order[assignment.nearest_row[order] >= 0]
    return {int(label): scores[order[labels[order] == label]] for label in labels[order].unique()}
