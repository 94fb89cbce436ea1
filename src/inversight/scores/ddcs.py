"""DDCS, the Diversity and Distance Composite Score: how close, and of how many images.

Li et al., "A Sample-Level Evaluation and Generative Framework for Model Inversion Attacks",
AAAI 2025 (arXiv 2502.19070), kept for each image instead of summed away.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inversight.embeddings.base import Features, squared_distances
from inversight.errors import ConfigError
from inversight.scores.bootstrap import interval_of_means
from inversight.scores.checks import check_pair
from inversight.scores.classwise import TIE, bounded, rows_by_class, take
from inversight.scores.result import ScoreResult, Summary


@dataclass(frozen=True)
class DDCSResult(ScoreResult):
    """A :class:`ScoreResult` on the private images, with the name of each one's nearest.

    per_sample, each (N,) in private's row order:
        ddcs_best, ddcs_average: float64 in [0, 1 / floor], 0 for an uncovered image.
        reconstructions: int64, how many are assigned to the image.
        nearest_distance: float64 >= 0, to the nearest reconstruction of the class, assigned to the
            image or not; NaN if the class has none.
        exact_hit: bool, ``nearest_distance`` is below the floor.
    nearest_reconstruction: id of that nearest one, None if the class has none.
    """

    nearest_reconstruction: tuple[str | None, ...]


def ddcs(
    private: Features,
    reconstructions: Features,
    *,
    floor: float = 1e-6,
    memory: int = 2 << 30,
    bootstrap: int = 1000,
    rng: torch.Generator,
) -> DDCSResult:
    """In [0, 1 / floor] for each private image, higher is more leakage; 0 is uncovered, not safe.

    Within a class each reconstruction is assigned to its nearest private image. An image with
    assigned reconstructions scores 1 / max(d, floor), where d is the smallest (``ddcs_best``) or
    the mean (``ddcs_average``) distance to them, and 0 without. The summary is the mean over all
    private images, ``covered`` the share of them that scores above 0. Distances that are equal (to
    1e-8 of themselves) go to the id that sorts first, so nothing depends on row order.

    It cannot see that an image is safe: of two near-identical private images only one gets the
    reconstruction, so judge an image by ``nearest_distance``. Nor whether closeness comes from the
    target or from the prior alone (only a holdout tells), nor what the embedding is blind to. Means
    of private sets of different sizes do not compare. The intervals (95 %, private images
    resampled within their classes, ``bootstrap`` times) leave out the attack's own randomness.

    Args:
        private: N images. reconstructions: M images, labelled with the class they are of.
        floor: distance below which a reconstruction counts as exact, > 0.
        memory: bytes that one block of distances may take.
        bootstrap: number of resamples; 0 for no intervals.
        rng: CPU generator for the resampling.

    Raises:
        InputError: see :func:`inversight.scores.checks.check_pair`.
        ConfigError: floor, memory or bootstrap out of range.
    """
    if not 0 < floor < float("inf"):
        raise ConfigError(f"floor: expected a positive distance, found {floor}")
    check_pair(private, reconstructions)
    images = len(private)
    best = torch.full((images,), float("inf"), dtype=torch.float64)
    total = torch.zeros(images, dtype=torch.float64)
    count = torch.zeros(images, dtype=torch.int64)
    nearest = torch.full((images,), float("nan"), dtype=torch.float64)
    nearest_row = torch.full((images,), -1, dtype=torch.int64)

    classes = rows_by_class(private)
    reconstructed = rows_by_class(reconstructions)
    for label, rows in classes.items():
        if label not in reconstructed:
            continue
        found = _assign(private, rows, reconstructions, reconstructed[label], memory)
        best[rows], total[rows], count[rows], nearest[rows], nearest_row[rows] = found

    covered = count > 0
    zero = torch.zeros((), dtype=torch.float64)
    score_best = torch.where(covered, 1.0 / best.clamp_min(floor), zero)
    mean = total / count.clamp_min(1)
    score_average = torch.where(covered, 1.0 / mean.clamp_min(floor), zero)
    exact = nearest < floor

    values = {"ddcs_best": score_best, "ddcs_average": score_average, "covered": covered.double()}
    order = torch.cat(list(classes.values()))
    intervals = interval_of_means(
        torch.stack(list(values.values()), dim=1)[order],
        torch.tensor([len(rows) for rows in classes.values()]),
        resamples=bootstrap,
        rng=rng,
    )
    counts = {
        "private_images": images,
        "reconstructions": len(reconstructions),
        "exact_hits": int(exact.sum()),
    }
    summary = {
        # Summed in the order of the ids, so that not even the last digit knows the row order.
        key: Summary(float(column[order].mean()), low, high, extra=counts)
        for (key, column), (low, high) in zip(values.items(), intervals, strict=True)
    }
    return DDCSResult(
        name="ddcs",
        direction="higher",
        meaning="higher: reconstructions come closer to more of the private images",
        rows="private",
        summary=summary,
        per_sample={
            "ddcs_best": score_best,
            "ddcs_average": score_average,
            "reconstructions": count,
            "nearest_distance": nearest,
            "exact_hit": exact,
        },
        nearest_reconstruction=tuple(
            reconstructions.ids[row] if row >= 0 else None for row in nearest_row.tolist()
        ),
    )


def _assign(
    private: Features,
    rows: Tensor,
    reconstructions: Features,
    candidates: Tensor,
    memory: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One class: smallest, summed and counted assigned distances, nearest distance and its row.

    rows, candidates: positions in private and reconstructions, both in the order of their ids, so
    that "first" below always means the id that sorts first.
    """
    own = take(private, rows)
    n = len(rows)
    best = torch.full((n,), float("inf"), dtype=torch.float64)
    total = torch.zeros(n, dtype=torch.float64)
    count = torch.zeros(n, dtype=torch.int64)
    nearest = torch.full((n,), float("inf"), dtype=torch.float64)
    nearest_row = torch.full((n,), -1, dtype=torch.int64)
    for part in bounded(reconstructions, candidates, n, memory):
        distances = squared_distances(take(reconstructions, part), own).cpu()
        owner = _first_smallest(distances)
        assigned = distances.gather(1, owner[:, None]).squeeze(1)
        best.scatter_reduce_(0, owner, assigned, "amin")
        total.index_add_(0, owner, assigned)
        count += owner.bincount(minlength=n)

        smallest = distances.amin(0)
        # An earlier block holds ids that sort first: a later one has to be nearer, not equal.
        nearer = smallest < nearest * (1.0 - TIE)
        nearest_row = torch.where(nearer, part[_first_smallest(distances.T)], nearest_row)
        nearest = torch.minimum(nearest, smallest)
    return best, total, count, nearest, nearest_row


def _first_smallest(distances: Tensor) -> Tensor:
    """Column of the smallest entry of each row (N, M), the first of those that are equal."""
    equal = distances <= distances.amin(1, keepdim=True) * (1.0 + TIE)
    # torch.argmax returns the first of several maxima.
    return equal.byte().argmax(1)
