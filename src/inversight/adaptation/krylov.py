"""Block Lanczos for a batch of symmetric matrices, one for each image.

Golub & Underwood 1977, with full re-orthogonalisation: for a few dozen vectors it costs little beside the
products, and it avoids the loss of orthogonality by rounding. All images take their steps together, so
that each product is one call for the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inversight.core.seeding import generator

Product = Callable[[Tensor], Tensor]
"""Multiplies each image's vector by its symmetric matrix, (N, C, H, W) -> (N, C, H, W)."""


@dataclass(frozen=True)
class Ritz:
    """Approximate eigenpairs of each image's M, the largest eigenvalue first; float64, on the CPU.

    ``values`` (N, m). ``vectors`` (N, m, m): each column holds the coordinates of an eigenvector in the
    basis. ``last`` (N, b, m): each column holds the residual M v - value v of a pair, in the coordinates
    of the next block, which is orthonormal.
    """

    values: Tensor
    vectors: Tensor
    last: Tensor


class Krylov:
    """An orthonormal basis V of span{S, M S, M^2 S, ...} for each image, and H = V^T M V.

    M V = V H + Q R E^T, where Q is the next block and E selects the last one. Once an image's space is
    exhausted (M maps it into itself), it continues with random vectors that depend on ``seed`` and
    position only; without a seed, with zeros, which change nothing.

    Args:
        product: v -> M v for the whole batch.
        start: S, (N, b, C, H, W). Without a seed, vectors of zeros stay zeros.
        steps: maximum number of calls of :meth:`extend`.
        seed: seed of the random vectors.
    """

    def __init__(
        self, product: Product, start: Tensor, *, steps: int, seed: int | None = None
    ) -> None:
        self._product = product
        self._seed = seed
        self._shape = start.shape[2:]
        n, self._width = start.shape[:2]
        most = self._width * (steps + 1)
        self._vectors = start.new_zeros(n, most, self._shape.numel())
        self._projected = start.new_zeros(n, most, most)
        self._scale = start.new_zeros(n)
        self._size = 0
        flat = start.flatten(2)
        self.root = self._append(flat, flat.norm(dim=2).amax(1))

    @property
    def basis(self) -> Tensor:
        """V, (N, m, D) for images of D values; the rows are orthonormal, or zero."""
        return self._vectors[:, : self._size]

    @property
    def spent(self) -> bool:
        """Whether the space of every image is exhausted."""
        return not bool(self._next.any())

    @property
    def _next(self) -> Tensor:
        return self._vectors[:, self._size : self._size + self._width]

    def extend(self) -> None:
        """Add the next block to the basis: one product for each of its vectors."""
        images = torch.stack(
            [self._product(v.unflatten(1, self._shape)).flatten(1) for v in self._next.unbind(1)], 1
        )
        self._size += self._width
        coefficients = images @ self.basis.mT
        rest = images - coefficients @ self.basis
        new = slice(self._size - self._width, self._size)
        self._projected[:, new, : self._size] = coefficients
        self._projected[:, : self._size, new] = coefficients.mT
        self._scale = torch.maximum(self._scale, images.norm(dim=2).amax(1))
        self.root = self._append(rest, self._scale)

    def ritz(self) -> Ritz:
        """Return the approximate eigenpairs of M in the basis."""
        h = self._projected[:, : self._size, : self._size].cpu().double()
        values, vectors = torch.linalg.eigh((h + h.mT) / 2)
        values, vectors = values.flip(1), vectors.flip(2)
        return Ritz(values, vectors, self.root.cpu().double() @ vectors[:, -self._width :])

    def _append(self, block: Tensor, scale: Tensor) -> Tensor:
        """Orthonormalise ``block`` (N, b, D) and write it behind the basis; return R, (N, b, b).

        After :meth:`extend`, this is the second projection off the basis. Two are enough (Parlett 1980,
        section 6-9), and for large images each is costly. A vector whose length is below the rounding
        error at ``scale`` (N,) has no direction of its own and is replaced.
        """
        tiny = torch.finfo(block.dtype).eps
        for column in range(self._width):
            position = self._size + column
            before = self._vectors[:, :position]
            row = _without(block[:, column : column + 1], before[:, self._size :])
            row = _without(row, before)
            length = row.norm(dim=2, keepdim=True)
            spent = length <= 100.0 * tiny * scale.view(-1, 1, 1)
            unit = torch.where(spent, 0.0, row / length)
            if self._seed is not None and bool(spent.any()):
                rng = generator(self._seed, "krylov", position)
                fresh = torch.randn(block.shape[2], generator=rng).to(block).expand_as(row)
                other = _without(_without(fresh, before), before)
                other_length = other.norm(dim=2, keepdim=True)
                # A shorter vector is a rounding error: the space is full.
                full = other_length <= tiny**0.5 * fresh.norm(dim=2, keepdim=True)
                unit = torch.where(spent & ~full, other / other_length, unit)
            self._vectors[:, position : position + 1] = unit
        return self._next @ block.mT


def _without(rows: Tensor, basis: Tensor) -> Tensor:
    """Return ``rows`` (N, r, D) minus their projection on ``basis`` (N, m, D)."""
    return rows - (rows @ basis.mT) @ basis
