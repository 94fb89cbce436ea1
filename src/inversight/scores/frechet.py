"""Frechet distance between two sets of features, each modelled as a Gaussian.

Dowson and Landau 1982; on Inception features it is the FID of Heusel et al. 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inversight.scores.checks import VectorsLike, as_pair
from inversight.scores.result import ScoreResult, distance_of_sets


def frechet_distance(private: VectorsLike, reconstructions: VectorsLike) -> ScoreResult:
    """In [0, inf), lower is more leakage: reconstructions are distributed like private images.

    ``|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))`` with means m and covariances S (divided by N - 1)
    of all images at once, whatever their class, over all blocks side by side, in float64. Fewer
    than 2 images on a side give a None value with its reason. Nothing per sample.

    It cannot see single images: a set that copies one private image badly and a set that copies
    none can score alike. It knows two moments only, and it is biased upwards for small sets, so
    only values for equal numbers of images compare. Fewer images than dimensions on a side do not
    determine a covariance; the summary has a caveat then.

    Raises:
        InputError: see :func:`inversight.scores.checks.check_pair`; classes need not match, and
            features may come without labels, as an array (N, D).
    """
    left, right = (side.flat() for side in as_pair(private, reconstructions, by_class=False))
    images, dimensions = min(len(left), len(right)), left.shape[1]
    caveat = None
    if images < dimensions:
        caveat = (
            f"{images:,} images do not determine a covariance of {dimensions:,} dimensions: the distance "
            "is far too large, and comparable only between sets of equally many images"
        )
    return distance_of_sets("frechet", left, right, _frechet, caveat=caveat, dimensions=dimensions)


def _frechet(left: Tensor, right: Tensor) -> float:
    """Return the distance of two sets (N, D) and (M, D).

    With S = A^T A and S' = B^T B the eigenvalues of S S' are the squared singular values of A B^T,
    so tr (S S')^(1/2) is their sum. This takes no root of a covariance, which is singular for fewer
    images than dimensions and for which a general eigensolver loses half of the digits.
    """
    mean_left, mean_right = left.double().mean(0), right.double().mean(0)
    a, b = _factor(left, mean_left), _factor(right, mean_right)
    cross = torch.linalg.svdvals(a @ b.T).sum()
    spread = a.square().sum() + b.square().sum() - 2.0 * cross
    return max(0.0, float((mean_left - mean_right).square().sum() + spread))


def _factor(features: Tensor, mean: Tensor) -> Tensor:
    """Return a matrix (min(N, D), D) float64 whose Gram matrix is the covariance of ``features`` (N, D).

    The triangle of a QR decomposition, updated block by block so that memory depends on D alone.
    """
    dimensions = features.shape[1]
    factor = features.new_zeros((0, dimensions), dtype=torch.float64)
    for part in torch.split(features, 4 * dimensions):
        factor = torch.cat([factor, part.double() - mean])
        if len(factor) > dimensions:
            factor = torch.linalg.qr(factor, mode="r").R
    return factor.div((len(features) - 1) ** 0.5)
