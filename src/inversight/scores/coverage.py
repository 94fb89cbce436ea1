"""Precision, recall, density and coverage: do the reconstructions spread like the private images?

Kynkaanniemi et al. 2019 (precision, recall), Naeem et al. 2020 (density, coverage), whose
definitions these are. Published attack code averages density over the wrong set and asks for the
nearest ball only; a ball here is any ball.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inversight.core.errors import ConfigError
from inversight.embeddings.base import Features
from inversight.embeddings.distances import squared_distances
from inversight.scores.bootstrap import default_rng, equal_classes, interval_of_means
from inversight.scores.checks import VectorsLike, as_pair
from inversight.scores.classwise import TIE, bounded, rows_by_class, take
from inversight.scores.result import ScoreResult, Summary

MEASURES = ("precision", "recall", "density", "coverage")
"""Keys of the summary of :func:`prdc`."""


def prdc(
    private: VectorsLike, reconstructions: VectorsLike, *, k: int = 3, memory: int = 2 << 30,
    bootstrap: int = 1000, rng: torch.Generator | None = None,
) -> ScoreResult:  # fmt: skip
    """In [0, 1] (density: [0, n / k], n images in the class), higher is more leakage.

    The ball around an image is open and reaches to its k-th nearest neighbour in its own set. The
    measures are computed for each class and averaged over classes with equal weight:

    - precision: fraction of reconstructions in any private ball;
    - density: number of private balls that hold a reconstruction, divided by k, averaged over
      reconstructions;
    - recall: fraction of private images in any reconstruction's ball;
    - coverage: fraction of private images whose ball holds a reconstruction.

    Classes with k or fewer images on either side are left out and counted in ``classes_left_out``; if
    none is left, the values are None with a reason. A class with fewer than 2k images has balls that
    reach over half of it; the measures of those balls have a caveat then. Arrays (N, D) without labels
    on both sides are one class.

    per_sample ``coverage``: (N,) float64, 1 where the image's ball holds a reconstruction, 0 where
    not, NaN where its class is left out.

    They do not measure how close a reconstruction is, only whether it is nearer than the class's own
    spread: nearly anything falls into the ball of an outlier, nothing into that of an image with k
    exact copies.

    The intervals (95 %) resample private images within their classes for recall, density and
    coverage, which are means over them with the balls as they are, and reconstructions for
    precision.

    Args:
        k: which neighbour sets the radius, >= 1.
        memory: bytes that one block of distances may take.
        bootstrap: number of resamples; 0 for no intervals.
        rng: CPU generator for the resampling; None for one with seed 0.

    Raises:
        InputError: see :func:`inversight.scores.checks.check_pair`; or labels on one side alone.
        ConfigError: k, memory or bootstrap out of range.
    """
    if k < 1:
        raise ConfigError(f"k: expected 1 or more neighbours, found {k}")
    real, made = as_pair(private, reconstructions, unlabelled=True)
    hit = torch.full((len(real),), float("nan"), dtype=torch.float64)
    classes, reconstructed = rows_by_class(real), rows_by_class(made)
    of_private: list[Tensor] = []
    of_reconstructions: list[Tensor] = []
    small, small_made = 0, 0
    for label, rows in classes.items():
        candidates = reconstructed.get(label, torch.empty(0, dtype=torch.int64))
        if min(len(rows), len(candidates)) <= k:
            continue
        small += len(rows) < 2 * k
        small_made += len(candidates) < 2 * k
        radius, made_radius = _radii(real, rows, k, memory), _radii(made, candidates, k, memory)
        own = take(real, rows)
        covered, recalled = torch.zeros(2, len(rows), dtype=torch.bool)
        count = torch.zeros(len(rows), dtype=torch.float64)
        precise = []
        for part in bounded(made, candidates, len(rows), memory):
            distances = squared_distances(own, take(made, part)).cpu()
            inside = distances < radius[rows, None]
            precise.append(inside.any(0).double())
            count += inside.sum(1)
            covered |= inside.any(1)
            recalled |= (distances < made_radius[part]).any(1)
        hit[rows] = covered.double()
        # As a mean over private images: n balls hold balls / n reconstructions each.
        density = count * len(rows) / (k * len(candidates))
        of_private.append(torch.stack([recalled.double(), density, covered.double()], dim=1))
        # Sorted, so that the names of reconstructions do not decide the interval.
        of_reconstructions.append(torch.cat(precise).sort().values[:, None])

    used = len(of_private)
    extra = {"k": k, "classes_used": used, "classes_left_out": len(classes) - used}
    reason = f"no class has more than {k} images on both sides"
    summary = {key: Summary(None, reason=reason, extra=extra) for key in MEASURES}
    drawn = rng or default_rng()
    for keys, values in ((MEASURES[1:], of_private), (MEASURES[:1], of_reconstructions)):
        if used:
            found = zip(keys, *_class_means(values, bootstrap, drawn), strict=True)
            summary |= {key: Summary(mean, *bounds, extra=extra) for key, mean, bounds in found}
    for key in MEASURES:
        few, whose = (
            (small_made, "reconstructions") if key == "recall" else (small, "private images")
        )
        if few:
            summary[key] = summary[key].with_caveat(
                f"{few} of {used} classes have fewer than {2 * k} {whose}: balls to the {k} nearest reach "
                "over half of such a class, so that nearly anything is inside"
            )
    return ScoreResult("higher", "private", summary, {"coverage": hit})


def _class_means(
    classes: Sequence[Tensor], bootstrap: int, rng: torch.Generator
) -> tuple[list[float], list[tuple[float | None, float | None]]]:
    """Return the mean of the classes' means of values (n, S), and its interval, for each column."""
    means = torch.stack([values.mean(0) for values in classes]).mean(0).tolist()
    sizes = torch.tensor([len(values) for values in classes])
    weighted = torch.cat(list(classes)) * equal_classes(sizes)[:, None]
    return means, interval_of_means(weighted, sizes, resamples=bootstrap, rng=rng)


def _radii(features: Features, rows: Tensor, k: int, memory: int) -> Tensor:
    """Return squared distances (N,) of ``rows`` to the k-th nearest other one of them, less ``TIE``.

    NaN for other rows. A point on the rim is outside; the tolerance keeps it there whatever the rounding.
    """
    own = take(features, rows)
    radii = torch.full((len(features),), float("nan"), dtype=torch.float64)
    for part in bounded(features, rows, len(rows), memory):
        distances = squared_distances(take(features, part), own).cpu()
        distances[part[:, None] == rows] = float("inf")
        radii[part] = distances.kthvalue(k, dim=1).values
    return radii * (1.0 - TIE)
