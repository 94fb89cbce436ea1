"""KNN distance: how near a reconstruction comes to its class, in the evaluator's features."""

from __future__ import annotations

import torch

from inversight.embeddings.distances import squared_distances
from inversight.scores.bootstrap import mean_summary
from inversight.scores.checks import FeaturesLike, as_pair
from inversight.scores.classwise import bounded, rows_by_class, take
from inversight.scores.result import ScoreResult


def knn_distance(
    private: FeaturesLike, reconstructions: FeaturesLike, *, memory: int = 2 << 30,
    bootstrap: int = 1000, rng: torch.Generator | None = None,
) -> ScoreResult:  # fmt: skip
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
    real, made = as_pair(private, reconstructions)
    nearest = torch.empty(len(made), dtype=torch.float64)
    classes, reconstructed = rows_by_class(real), rows_by_class(made)
    for label, rows in reconstructed.items():
        own = take(real, classes[label])
        for part in bounded(made, rows, len(classes[label]), memory):
            nearest[part] = squared_distances(take(made, part), own).amin(1).cpu()
    # Summed class by class in the order of the values, so that neither the row order nor the names
    # of the reconstructions decide the last digit or the interval.
    values = torch.cat([nearest[rows].sort().values for rows in reconstructed.values()])
    sizes = torch.tensor([len(rows) for rows in reconstructed.values()])
    extra = {"private_images": len(real), "reconstructions": len(made)}
    summary = mean_summary(values, sizes, resamples=bootstrap, rng=rng, extra=extra)
    return ScoreResult(
        "lower", "reconstructions", {"knn_distance": summary}, {"knn_distance": nearest}
    )
