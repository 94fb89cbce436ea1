"""The published natural gradient: the inverse of the metric's top eigenspace."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inversight.adaptation.krylov import Krylov, Product
from inversight.adaptation.preconditioners import log_means
from inversight.embeddings.base import Embedding
from inversight.embeddings.pullback import PullbackMetric

# Fewest steps from one look at the residuals to the next. A look costs an eigendecomposition for
# each image, on a GPU as much as a few products.
_LOOK = 4


@dataclass(frozen=True)
class Eigenspace:
    """The r largest eigenvalues of each image's M, descending, and their vectors.

    ``values`` (N, r), ``vectors`` (N, r, D) with orthonormal rows, ``residuals`` (N, r):
    |M v - value v| / value. All three are 0 where M has fewer than r eigenvalues that are not 0.
    ``products``: products with M that each image took.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int

    def coordinates(self, gradients: Tensor) -> Tensor:
        """V^T g, (N, C, H, W) -> (N, r)."""
        return (self.vectors @ gradients.flatten(1)[:, :, None])[:, :, 0]

    def inverse(self, coordinates: Tensor) -> Tensor:
        """V diag(1 / value) of coordinates (N, r) -> (N, D); eigenvalues of 0 count as infinite."""
        divided = torch.where(self.values > 0, coordinates / self.values, 0.0)
        return (divided[:, None] @ self.vectors)[:, 0]


def top_eigenspace(
    product: Product,
    images: Tensor,
    *,
    rank: int,
    tolerance: float,
    products: int,
    block: int = 1,
    seed: int = 0,
) -> Eigenspace:
    """The ``rank`` top eigenpairs of each image's M by block Lanczos, for all images together.

    Goes on until no residual is above ``tolerance``, or ``products`` (of each image) are spent. The
    start vectors are drawn by ``seed``, the same for every image, so that no image's result depends
    on another's. With a block of b, an eigenvalue that is there several times is found b times at
    least; all of them where the space gets exhausted, as the spaces of small embeddings do.
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


@dataclass
class PaperEigen:
    """V diag(1 / lambda) V^T g, V the top ``rank`` eigenvectors of M = 2 J^T J (Li et al. 2025).

    What lies outside of these few directions is dropped, and 1 / lambda is not damped: the paper's
    natural gradient, but of the images at hand, whose eigenpairs are found to a relative residual of
    ``tolerance`` (below about 0.01 the direction changes no more; above it, eigenvectors are missed)
    with at most ``products`` products.

    ``refresh``: calls from one computation of the eigenspace to the next; None: once, at the first,
    as the published code does. Above 1 the eigenvectors are stale: they belong to the images that
    stood in the same places of the batch up to ``refresh`` - 1 calls ago, which in a GAN are other
    images altogether. They are not part of a checkpoint either: a resumed adaptation begins with
    fresh ones, and equals an undisturbed one for 1 only.

    ``logged``, means over the images whose gradient is not zero: ``residual``, |M v - lambda v| /
    lambda over the eigenpairs, at the images that they were computed for; ``energy``, the share
    |V^T g|^2 / |g|^2 of the gradient that is kept.
    """

    embedding: Embedding
    rank: int = 20
    refresh: int | None = 1
    tolerance: float = 0.01
    products: int = 200
    logged: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    _found: Eigenspace | None = field(default=None, init=False, repr=False, compare=False)
    _age: int = field(default=0, init=False, repr=False, compare=False)

    def __call__(self, images: Tensor, gradients: Tensor) -> Tensor:
        found = self._eigenspace(images)
        kept = found.coordinates(gradients)
        squares = gradients.flatten(1).square().sum(1)
        log_means(
            self.logged,
            squares > 0,
            residual=found.residuals.mean(1),
            energy=kept.square().sum(1) / squares,
        )
        return found.inverse(kept).view_as(gradients)

    def _eigenspace(self, images: Tensor) -> Eigenspace:
        fits = self._found is not None and self._found.vectors.shape[::2] == (
            len(images), images[0].numel(),
        )  # fmt: skip
        if self._found is None or not fits or self._age == self.refresh:
            self._age = 0
            self._found = top_eigenspace(
                PullbackMetric(self.embedding, images).product,
                images,
                rank=self.rank,
                tolerance=self.tolerance,
                products=self.products,
            )
        self._age += 1
        return self._found


def _next_look(before: tuple[int, float], now: tuple[int, float], tolerance: float) -> int:
    """The step at which to look again, from the (step, largest residual) of the last two looks.

    Residuals fall about geometrically once they fall at all, and faster towards the end: go on for
    three quarters of the steps that the last rate would take, an eighth of those made at most.
    """
    step, worst = now
    rate = math.log(before[1] / worst) / (step - before[0])
    wanted = math.log(worst / tolerance) / rate if rate > 0 and tolerance > 0 else math.inf
    return step + max(_LOOK, round(min(0.75 * wanted, step / 8)))


def _top(space: Krylov, rank: int) -> Eigenspace:
    """The first ``rank`` of the Ritz pairs that are not 0 to rounding."""
    ritz, basis = space.ritz(), space.basis
    values = ritz.values[:, :rank]
    known = values > 100.0 * torch.finfo(basis.dtype).eps * values[:, :1]
    residuals = torch.where(known, ritz.last.norm(dim=1)[:, :rank] / values, 0.0)
    vectors = (ritz.vectors[:, :, :rank] * known[:, None]).mT.to(basis) @ basis
    return Eigenspace(
        torch.where(known, values, 0.0).to(basis), vectors, residuals.to(basis), basis.shape[1]
    )
