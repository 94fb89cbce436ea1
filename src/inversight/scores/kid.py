"""Kernel distance between two sets of features; on Inception features it is the KID.

Binkowski et al. 2018, "Demystifying MMD GANs", section 4. torch-fidelity and torchmetrics average
over random subsets of equal size. The estimator needs neither, so here all images are used and the
value does not depend on random draws. For one subset it equals theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inversight.embeddings.base import Features
from inversight.scores.assignment import rank
from inversight.scores.bootstrap import default_rng
from inversight.scores.checks import VectorsLike, as_pair
from inversight.scores.result import ScoreResult, distance_of_sets

MOST = 10_000
"""Images used on a side; of more, as many are drawn, because the work grows with the square."""

_BLOCK = 1024


def kernel_distance(
    private: VectorsLike, reconstructions: VectorsLike, *, rng: torch.Generator | None = None
) -> ScoreResult:
    """About 0 or above, lower is more leakage: reconstructions are distributed like private images.

    The unbiased squared maximum mean discrepancy under the kernel (x y / D + 1)^3; slightly below 0
    for equal distributions. Unlike the Frechet distance it does not grow for small sets. Fewer than
    2 images on a side give a None value with its reason. Nothing per sample.

    It cannot see single images, nor classes.

    Args:
        rng: CPU generator that draws 10,000 images where a side has more; None for seed 0.

    Raises:
        InputError: see :func:`inversight.scores.checks.check_pair`; classes need not match, and
            features may come without labels, as an array (N, D).
    """
    drawn = rng or default_rng()
    left, right = (
        _in_order(side, drawn) for side in as_pair(private, reconstructions, by_class=False)
    )
    return distance_of_sets("kid", left, right, _unbiased)


def _unbiased(left: Tensor, right: Tensor) -> float:
    """Return the unbiased squared maximum mean discrepancy of (N, D) and (M, D)."""
    within = sum(
        (_kernel_sum(x, x) - float(_kernel(x.square().sum(1), x.shape[1]).sum()))
        / (len(x) * (len(x) - 1))
        for x in (left, right)
    )
    return within - 2.0 * _kernel_sum(left, right) / (len(left) * len(right))


def _kernel(products: Tensor, dimensions: int) -> Tensor:
    return (products / dimensions + 1.0) ** 3


def _kernel_sum(left: Tensor, right: Tensor) -> float:
    """Return the sum of the kernel over all pairs, computed block by block."""
    return sum(
        float(_kernel(a @ b.T, left.shape[1]).sum())
        for a in left.split(_BLOCK)
        for b in right.split(_BLOCK)
    )


def _in_order(features: Features, rng: torch.Generator) -> Tensor:
    """Return float64 rows in the order of their ids, or ``MOST`` drawn ones of them."""
    rows = rank(features.ids).argsort()
    if len(rows) > MOST:
        rows = rows[torch.randperm(len(rows), generator=rng)[:MOST]]
    return features.flat()[rows].double()
