"""Embeddings whose metric is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.draws import normal

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


def draw(n: int, seed: int) -> Tensor:
    return normal(n, *SHAPE, seed=seed)


def linear(rows: int = 8, kind: type[Linear] = Linear) -> Linear:
    return kind(normal(rows, D))


def with_eigenvalues(values: list[float]) -> Linear:
    """A linear embedding whose M has these eigenvalues, in a random basis."""
    turn, _ = torch.linalg.qr(normal(D, D, seed=3))
    return Linear((torch.tensor(values, dtype=torch.float64) / 2).sqrt()[:, None] * turn)


BLIND = Linear(torch.zeros(2, D, dtype=torch.float64))
"""An embedding of metric 0."""
