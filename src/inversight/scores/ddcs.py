"""DDCS, the Diversity and Distance Composite Score: how close, and to how many images.

Li et al., "A Sample-Level Evaluation and Generative Framework for Model Inversion Attacks",
AAAI 2025 (arXiv 2502.19070). Here it is kept for each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inversight.core.errors import ConfigError
from inversight.scores.assignment import Assignment, assign, rank
from inversight.scores.bootstrap import class_order, interval_of_means
from inversight.scores.checks import FeaturesLike, as_pair
from inversight.scores.result import ScoreResult, Summary


@dataclass(frozen=True)
class DDCSResult(ScoreResult):
    """A :class:`ScoreResult` on the private images, with the name of each one's nearest reconstruction.

    per_sample, each (N,) in private's row order:
        ddcs_best, ddcs_average: float64 in [0, 1 / floor], 0 for an uncovered image.
        reconstructions: int64, how many are assigned to the image.
        nearest_distance: float64 >= 0, to the nearest reconstruction of the class, assigned to the
            image or not; NaN if the class has none.
        exact_hit: bool, ``nearest_distance`` is below the floor.
    nearest_reconstruction: id of that nearest one, None if the class has none.
    """

    nearest_reconstruction: tuple[str | None, ...] = ()


def ddcs(
    private: FeaturesLike, reconstructions: FeaturesLike, *, floor: float = 1e-6,
    memory: int = 2 << 30, bootstrap: int = 1000, rng: torch.Generator | None = None,
) -> DDCSResult:  # fmt: skip
    """In [0, 1 / floor] for each private image, higher is more leakage; 0 is uncovered, not safe.

    Within a class each reconstruction is assigned to its nearest private image. An image with
    assigned reconstructions scores 1 / max(d, floor), where d is the smallest (``ddcs_best``) or
    the mean (``ddcs_average``) distance to them, and 0 without. The summary is the mean over all
    private images, ``covered`` the fraction of them that scores above 0. Distances that are equal (to
    1e-8 of themselves) go to the id that sorts first, so nothing depends on row order.

    It cannot show that an image is safe: of two near-identical private images only one gets the
    reconstruction, so judge an image by ``nearest_distance``. Nor does it show whether closeness comes
    from the target or from the prior alone (only a holdout does), nor what the embedding ignores. Means
    of private sets of different sizes are not comparable. The intervals (95 %, private images
    resampled within their classes, ``bootstrap`` times) leave out the attack's own randomness, and
    are somewhat too short for skewed scores (see
    :func:`inversight.scores.bootstrap.interval_of_means`).

    Args:
        private: N images' features, or a pair (array (N, ...), labels (N,)) of tensors or NumPy
            arrays.
        reconstructions: M images, labelled with the class they are of, likewise.
        floor: distance below which a reconstruction counts as exact, > 0.
        memory: bytes that one block of distances may take.
        bootstrap: number of resamples; 0 for no intervals.
        rng: CPU generator for the resampling; None for one with seed 0.

    Raises:
        InputError: see :func:`inversight.scores.checks.check_pair`.
        ConfigError: floor, memory or bootstrap out of range.
    """
    real, made = as_pair(private, reconstructions)
    return ddcs_of(
        assign(real, made, memory=memory), labels=real.labels, ids=real.ids,
        reconstruction_ids=made.ids, floor=floor, bootstrap=bootstrap, rng=rng,
    )  # fmt: skip


def ddcs_of(
    assignment: Assignment, *, labels: Tensor, ids: Sequence[str],
    reconstruction_ids: Sequence[str], floor: float = 1e-6, bootstrap: int = 1000,
    rng: torch.Generator | None = None,
) -> DDCSResult:  # fmt: skip
    """Return :func:`ddcs` of a given assignment; labels (N,) and ids are those of private.

    Raises:
        ConfigError: floor or bootstrap out of range.
    """
    images = len(ids)
    best = best_scores(assignment, floor=floor)
    # Summed in the order of the ids, so that not even the last digit depends on the row order.
    in_order = rank(reconstruction_ids).argsort()
    assigned = in_order[assignment.owner[in_order] >= 0]
    owner, distance = assignment.owner[assigned], assignment.distance[assigned]
    total = torch.zeros(images, dtype=torch.float64).index_add_(0, owner, distance)
    count = owner.bincount(minlength=images)
    nearest = assignment.nearest.masked_fill(assignment.nearest_row < 0, float("nan"))
    exact = nearest < floor
    covered = (count > 0).double()
    mean = total / count.clamp_min(1)
    scores = {"ddcs_best": best, "ddcs_average": covered / mean.clamp_min(floor)}

    values = {**scores, "covered": covered}
    order, sizes = class_order(labels, ids)
    columns = torch.stack(list(values.values()), dim=1)[order]
    intervals = interval_of_means(columns, sizes, resamples=bootstrap, rng=rng)
    extra: dict[str, float | int | str] = {
        "private_images": images, "reconstructions": len(reconstruction_ids),
        "exact_hits": int(exact.sum()),
    }  # fmt: skip
    summary = {
        key: Summary(float(column[order].mean()), *interval, extra=extra)
        for (key, column), interval in zip(values.items(), intervals, strict=True)
    }
    found = {"reconstructions": count, "nearest_distance": nearest, "exact_hit": exact}
    names = tuple(
        reconstruction_ids[i] if i >= 0 else None for i in assignment.nearest_row.tolist()
    )
    return DDCSResult("higher", "private", summary, {**scores, **found}, names)


def best_scores(assignment: Assignment, *, floor: float) -> Tensor:
    """Return ``ddcs_best`` (N,) of each private image of an assignment (see :func:`ddcs`).

    Raises:
        ConfigError: floor out of range.
    """
    if not 0 < floor < float("inf"):
        raise ConfigError(f"floor: expected a positive distance, found {floor}")
    assigned = assignment.owner >= 0
    best = torch.full_like(assignment.nearest, float("inf"))
    best.scatter_reduce_(0, assignment.owner[assigned], assignment.distance[assigned], "amin")
    return 1.0 / best.clamp_min(floor)  # 0 without reconstructions
