"""Conjugate gradients for one system, as the textbook has them (Hestenes & Stiefel 1952)."""

from __future__ import annotations

from torch import Tensor


def conjugate_gradients(matrix: Tensor, b: Tensor, steps: int) -> Tensor:
    """The iterate x after so many steps from 0 of ``matrix`` (D, D) x = ``b`` (D,)."""
    x = 0.0 * b
    residual = b - matrix @ x
    direction = residual
    for _ in range(steps):
        image = matrix @ direction
        alpha = (residual @ residual) / (direction @ image)
        x = x + alpha * direction
        new = residual - alpha * image
        direction = new + (new @ new) / (residual @ residual) * direction
        residual = new
    return x
