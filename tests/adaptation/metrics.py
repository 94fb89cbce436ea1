"""Embeddings whose metric is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SHAPE = (1, 3, 4)
D = 12


@dataclass(frozen=True)
class Linear:
    """phi(x) = A x, so M = 2 A^T A everywhere."""

    a: Tensor
    name: str = "linear"

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return (images.flatten(1) @ self.a.T,)

    @property
    def metric(self) -> Tensor:
        return 2.0 * self.a.T @ self.a


@dataclass(frozen=True)
class Curved(Linear):
    """phi(x) = tanh(A x): M differs from image to image."""

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return (torch.tanh(images.flatten(1) @ self.a.T),)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(n: int, seed: int) -> Tensor:
    return torch.randn(n, *SHAPE, generator=rng(seed), dtype=torch.float64)


def linear(rows: int = 8, kind: type[Linear] = Linear) -> Linear:
    return kind(torch.randn(rows, D, generator=rng(0), dtype=torch.float64))


def with_eigenvalues(values: list[float]) -> Linear:
    """A linear embedding whose M has these eigenvalues, in a random basis."""
    turn, _ = torch.linalg.qr(torch.randn(D, D, generator=rng(3), dtype=torch.float64))
    return Linear((torch.tensor(values, dtype=torch.float64) / 2).sqrt()[:, None] * turn)
