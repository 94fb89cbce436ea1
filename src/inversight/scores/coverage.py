"""Precision, recall, density and coverage: do the reconstructions spread like the private images?

Kynkaanniemi et al. 2019 (precision, recall), Naeem et al. 2020 (density, coverage), whose
definitions these are. Published attack code averages density over the wrong set and asks for the
nearest ball only; a ball here is any ball.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inversight.embeddings.base import Features, squared_distances
from inversight.errors import ConfigError
from inversight.scores.checks import check_pair
from inversight.scores.classwise import TIE, bounded, rows_by_class, take
from inversight.scores.result import ScoreResult, Summary

MEASURES = ("precision", "recall", "density", "coverage")
"""Keys of the summary of :func:`prdc`."""


def prdc(
    private: Features, reconstructions: Features, *, k: int = 3, memory: int = 2 << 30
) -> ScoreResult:
    """In [0, 1] (density: [0, n / k], n images in the class), higher is more leakage.

    A ball around an image reaches to its k-th nearest neighbour in its own set and does not hold
    its rim. For each class, then averaged over classes with equal weight:
    precision, the share of reconstructions in any private ball; density, the number of private
    balls that hold a reconstruction, divided by k, averaged over reconstructions; recall, the share
    of private images in any reconstruction's ball; coverage, the share of private images whose ball
    holds a reconstruction. Classes with k or fewer images on either side are left out, counted in
    ``classes_left_out``; none left gives a None value with its reason.

    per_sample ``coverage``: (N,) float64, 1 where the image's ball holds a reconstruction, 0 where
    not, NaN where its class is left out.

    They cannot see how close a reconstruction is, only whether it is nearer than the class's own
    spread: an outlier has a ball that nearly anything falls into, an image with k exact copies one
    that holds nothing.

    Args:
        k: which neighbour sets the radius, >= 1.
        memory: bytes that one block of distances may take.

    Raises:
        InputError: see :func:`inversight.scores.checks.check_pair`.
        ConfigError: k or memory out of range.
    """
    if k < 1:
        raise ConfigError(f"k: expected 1 or more neighbours, found {k}")
    check_pair(private, reconstructions)
    hit = torch.full((len(private),), float("nan"), dtype=torch.float64)
    classes, reconstructed = rows_by_class(private), rows_by_class(reconstructions)
    found: list[tuple[float, float, float, float]] = []
    for label, rows in classes.items():
        candidates = reconstructed.get(label, torch.empty(0, dtype=torch.int64))
        if min(len(rows), len(candidates)) <= k:
            continue
        radius = _radii(private, rows, k, memory)
        other_radius = _radii(reconstructions, candidates, k, memory)
        own = take(private, rows)
        covered = torch.zeros(len(rows), dtype=torch.bool)
        recalled = torch.zeros(len(rows), dtype=torch.bool)
        precise = balls = position = 0
        for part in bounded(reconstructions, candidates, len(rows), memory):
            distances = squared_distances(own, take(reconstructions, part)).cpu()
            inside = distances < radius[:, None]
            precise += int(inside.any(0).sum())
            balls += int(inside.sum())
            covered |= inside.any(1)
            theirs = other_radius[position : position + len(part)]
            recalled |= (distances < theirs[None, :]).any(1)
            position += len(part)
        hit[rows] = covered.double()
        found.append(
            (
                precise / len(candidates),
                float(recalled.double().mean()),
                balls / (k * len(candidates)),
                float(covered.double().mean()),
            )
        )

    extra = {"k": k, "classes_used": len(found), "classes_left_out": len(classes) - len(found)}
    if found:
        means = torch.tensor(found, dtype=torch.float64).mean(0).tolist()
        summary = {
            key: Summary(value, extra=extra) for key, value in zip(MEASURES, means, strict=True)
        }
    else:
        reason = f"no class has more than {k} images on both sides"
        summary = {key: Summary(None, reason=reason, extra=extra) for key in MEASURES}
    return ScoreResult(
        name="prdc",
        direction="higher",
        meaning="higher: reconstructions lie where the private images lie, and everywhere there",
        rows="private",
        summary=summary,
        per_sample={"coverage": hit},
    )


def _radii(features: Features, rows: Tensor, k: int, memory: int) -> Tensor:
    """Squared distance (R,) of each row to its k-th nearest other row, less the tie tolerance.

    A point on the rim is outside; the tolerance keeps it there whichever way rounding goes.
    """
    own = take(features, rows)
    radii, position = [], 0
    for part in bounded(features, rows, len(rows), memory):
        distances = squared_distances(take(features, part), own).cpu()
        here = torch.arange(len(part))
        distances[here, here + position] = float("inf")
        radii.append(distances.kthvalue(k, dim=1).values)
        position += len(part)
    return torch.cat(radii) * (1.0 - TIE)
