"""The published natural gradient: the inverse of the metric in its top eigenspace."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inversight.adaptation.krylov import Krylov, Product
from inversight.adaptation.preconditioners import log_means
from inversight.embeddings.base import Embedding
from inversight.embeddings.pullback import PullbackMetric

_LOOK = 4
"""Smallest number of steps between two checks of the residuals. A check costs an eigendecomposition for
each image: on a GPU, as much as a few products."""


@dataclass(frozen=True)
class Eigenspace:
    """The r largest eigenvalues of each image's M, in descending order, and their eigenvectors.

    ``values`` (N, r). ``vectors`` (N, r, D) with orthonormal rows. ``residuals`` (N, r):
    |M v - value v| / value. All three are 0 beyond the rank of M. ``products``: number of products
    with M for each image.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int

    def coordinates(self, gradients: Tensor) -> Tensor:
        """Return V^T g; (N, C, H, W) -> (N, r)."""
        return (self.vectors @ gradients.flatten(1)[:, :, None])[:, :, 0]

    def inverse(self, coordinates: Tensor) -> Tensor:
        """Return V diag(1 / value) c for coordinates c; (N, r) -> (N, D). 1 / 0 counts as 0."""
        divided = torch.where(self.values > 0, coordinates / self.values, 0.0)
        return (divided[:, None] @ self.vectors)[:, 0]


def top_eigenspace(
    product: Product, images: Tensor, *, rank: int, tolerance: float, products: int, block: int = 1,
    seed: int = 0,
) -> Eigenspace:  # fmt: skip
    """Return the ``rank`` top eigenpairs of each image's M by block Lanczos, for all images together.

    It stops when no residual is above ``tolerance``, or after ``products`` products for each image. The
    start vectors are drawn from ``seed`` and are the same for all images, so that an image's result does
    not depend on the others. A repeated eigenvalue is found at least ``block`` times, and completely
    once the space is exhausted, as happens for small embeddings.
    """
    size = images[0].numel()
    steps = math.ceil(min(products, size) / block)
    start = torch.randn(1, block, *images.shape[1:], generator=torch.Generator().manual_seed(seed))
    start = start.to(images).expand(len(images), *start.shape[1:])
    space = Krylov(product, start, steps=steps, seed=seed)
    look, seen = max(_LOOK, math.ceil(rank / block)), (0, math.inf)
    for step in range(1, steps + 1):
        space.extend()
        if step == min(look, steps):
            found = _top(space, min(rank, size))
            worst = float(found.residuals.max())
            if worst <= tolerance:
                break
            look, seen = _next_look(seen, (step, worst), tolerance), (step, worst)
    return found


@dataclass(frozen=True)
class PaperEigen:
    """Computes V diag(1 / lambda) V^T g, V the top ``rank`` eigenvectors of M = 2 J^T J (Li et al. 2025).

    The rest of the gradient is dropped, and 1 / lambda is not damped. The published code computes the
    eigenvectors once, for the first images; here they are those of the images of each call, to a
    relative residual of ``tolerance`` with at most ``products`` products. Below a tolerance of about
    0.01 the direction no longer changes; above it, eigenvectors are missed.

    ``logged`` holds means over the images whose gradient is not zero: ``residual`` is
    |M v - lambda v| / lambda, the mean over eigenpairs; ``energy`` is the fraction |V^T g|^2 / |g|^2 of
    the gradient that is kept.
    """

    embedding: Embedding
    rank: int = 20
    tolerance: float = 0.01
    products: int = 200
    logged: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, images: Tensor, gradients: Tensor) -> Tensor:
        found = top_eigenspace(
            PullbackMetric(self.embedding, images).product, images, rank=self.rank,
            tolerance=self.tolerance, products=self.products,
        )  # fmt: skip
        kept = found.coordinates(gradients)
        squares = gradients.flatten(1).square().sum(1)
        log_means(
            self.logged,
            squares > 0,
            residual=found.residuals.mean(1),
            energy=kept.square().sum(1) / squares,
        )
        return found.inverse(kept).view_as(gradients)


def _next_look(before: tuple[int, float], now: tuple[int, float], tolerance: float) -> int:
    """Return the step of the next check, given the (step, largest residual) of the last two checks.

    Residuals decrease about geometrically, and faster towards the end. So wait for three quarters of the
    steps that the last rate would need, but at most an eighth of the steps made.
    """
    step, worst = now
    rate = math.log(before[1] / worst) / (step - before[0])
    wanted = math.log(worst / tolerance) / rate if rate > 0 and tolerance > 0 else math.inf
    return step + max(_LOOK, round(min(0.75 * wanted, step / 8)))


def _top(space: Krylov, rank: int) -> Eigenspace:
    """Return the first ``rank`` of the Ritz pairs whose values are not 0 within rounding."""
    ritz, basis = space.ritz(), space.basis
    values = ritz.values[:, :rank]
    known = values > 100.0 * torch.finfo(basis.dtype).eps * values[:, :1]
    residuals = torch.where(known, ritz.last.norm(dim=1)[:, :rank] / values, 0.0)
    vectors = (ritz.vectors[:, :, :rank] * known[:, None]).mT.to(basis) @ basis
    return Eigenspace(
        torch.where(known, values, 0.0).to(basis), vectors, residuals.to(basis), basis.shape[1]
    )
