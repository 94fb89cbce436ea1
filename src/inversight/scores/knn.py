"""KNN distance: how near a reconstruction comes to its class, in the evaluator's features."""

from __future__ import annotations

import torch

from inversight.embeddings.distances import squared_distances
from inversight.scores.bootstrap import default_rng, interval_of_means
from inversight.scores.checks import FeaturesLike, as_pair
from inversight.scores.classwise import bounded, rows_by_class, take
from inversight.scores.result import ScoreResult, Summary


def knn_distance(
    private: FeaturesLike,
    reconstructions: FeaturesLike,
    *,
    memory: int = 2 << 30,
    bootstrap: int = 1000,
    rng: torch.Generator | None = None,
) -> ScoreResult:
    """In [0, inf), in squared feature units, lower is more leakage.

    The mean over reconstructions of the smallest squared L2 distance to a private image of their
    class. per_sample ``knn_distance``: (M,) float64, that distance for each reconstruction. Meant
    for an evaluator's features (Zhang et al. 2020 and the attacks since). The interval (95 %)
    resamples reconstructions within their classes: private images cannot be resampled under a
    smallest distance without making it larger.

    It cannot see diversity: copies of one image next to one private image score best. Nor can it be
    compared between evaluators, whose features have their own scale.

    Args:
        memory: bytes that one block of distances may take.
        bootstrap: number of resamples; 0 for no interval.
        rng: CPU generator for the resampling; None for one with seed 0.

    Raises:
        InputError: see :func:`inversight.scores.checks.check_pair`.
        ConfigError: memory or bootstrap out of range.
    """
    ours, theirs = as_pair(private, reconstructions)
    nearest = torch.empty(len(theirs), dtype=torch.float64)
    classes, reconstructed = rows_by_class(ours), rows_by_class(theirs)
    for label, rows in reconstructed.items():
        own = take(ours, classes[label])
        for part in bounded(theirs, rows, len(classes[label]), memory):
            distances = squared_distances(take(theirs, part), own)
            nearest[part] = distances.amin(1).cpu()
    # Summed class by class in the order of the values, so that neither the row order nor the names
    # of the reconstructions decide the last digit or the interval.
    values = torch.cat([nearest[rows].sort().values for rows in reconstructed.values()])
    [(low, high)] = interval_of_means(
        values[:, None],
        torch.tensor([len(rows) for rows in reconstructed.values()]),
        resamples=bootstrap,
        rng=rng or default_rng(),
    )
    extra = {"private_images": len(ours), "reconstructions": len(theirs)}
    summary = Summary(float(values.mean()), low, high, extra=extra)
    return ScoreResult(
        name="knn_distance",
        direction="lower",
        meaning="lower: reconstructions lie nearer to a private image of their class",
        rows="reconstructions",
        summary={"knn_distance": summary},
        per_sample={"knn_distance": nearest},
    )
