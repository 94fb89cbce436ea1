"""KNN distance: how near a reconstruction comes to its class, in the evaluator's features."""

from __future__ import annotations

import torch

from inversight.embeddings.base import Features, squared_distances
from inversight.scores.checks import check_pair
from inversight.scores.classwise import bounded, rows_by_class, take
from inversight.scores.result import ScoreResult, Summary


def knn_distance(
    private: Features, reconstructions: Features, *, memory: int = 2 << 30
) -> ScoreResult:
    """In [0, inf), in squared feature units, lower is more leakage.

    The mean over reconstructions of the smallest squared L2 distance to a private image of their
    class. per_sample ``knn_distance``: (M,) float64, that distance for each reconstruction. Meant
    for an evaluator's features (Zhang et al. 2020 and the attacks since).

    It cannot see diversity: copies of one image next to one private image score best. Nor can it be
    compared between evaluators, whose features have their own scale.

    Args:
        memory: bytes that one block of distances may take.

    Raises:
        InputError: see :func:`inversight.scores.checks.check_pair`.
        ConfigError: memory out of range.
    """
    check_pair(private, reconstructions)
    nearest = torch.empty(len(reconstructions), dtype=torch.float64)
    classes, reconstructed = rows_by_class(private), rows_by_class(reconstructions)
    for label, rows in reconstructed.items():
        own = take(private, classes[label])
        for part in bounded(reconstructions, rows, len(classes[label]), memory):
            distances = squared_distances(take(reconstructions, part), own)
            nearest[part] = distances.amin(1).cpu()
    # Summed in the order of the ids, so that not even the last digit knows the row order.
    order = torch.cat(list(reconstructed.values()))
    extra = {"private_images": len(private), "reconstructions": len(reconstructions)}
    return ScoreResult(
        name="knn_distance",
        direction="lower",
        meaning="lower: reconstructions lie nearer to a private image of their class",
        rows="reconstructions",
        summary={"knn_distance": Summary(float(nearest[order].mean()), extra=extra)},
        per_sample={"knn_distance": nearest},
    )
