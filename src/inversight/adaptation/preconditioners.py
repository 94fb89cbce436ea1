"""What turns a gradient on images into the step of steepest descent under a perceptual metric.

A preconditioner maps images (N, C, H, W) in [0, 1] and gradients of the same shape to gradients of
the same shape, image by image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from inversight.embeddings.base import Embedding
from inversight.embeddings.pullback import PullbackMetric, dot


class Preconditioner(Protocol):
    """Images and gradients, both (N, C, H, W) -> gradients (N, C, H, W)."""

    def __call__(self, images: Tensor, gradients: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Identity:
    """Leaves the gradient as it is: the ``entropy`` arm."""

    def __call__(self, images: Tensor, gradients: Tensor) -> Tensor:
        return gradients


@dataclass(frozen=True)
class Damped:
    """(M + eps I)^-1 g by batched conjugate gradients, M = 2 J^T J at the images at hand.

    eps = ``damping`` times each image's largest eigenvalue (estimated by ``power_iterations``), so
    that one value fits all embeddings and image sizes. Unlike the published inverse of the top
    eigenspace (METHOD section 3), which drops what lies outside of it, directions that the metric
    does not see are kept, at most 1 / ``damping`` times as strongly as those it sees best.
    """

    embedding: Embedding
    damping: float = 0.1
    iterations: int = 6
    power_iterations: int = 3

    def __call__(self, images: Tensor, gradients: Tensor) -> Tensor:
        metric = PullbackMetric(self.embedding, images)
        eps = self.damping * metric.largest_eigenvalue(gradients, self.power_iterations)
        # Where the metric vanishes (a flat image, a zero gradient) any positive damping will do.
        eps = eps.clamp_min(1e-12).view(-1, 1, 1, 1)
        return conjugate_gradients(
            lambda v: metric.product(v) + eps * v, gradients, iterations=self.iterations
        )


class LinearOperator(Protocol):
    """A symmetric positive definite map of each image's space, (N, C, H, W) -> (N, C, H, W)."""

    def __call__(self, v: Tensor) -> Tensor: ...


def conjugate_gradients(operator: LinearOperator, b: Tensor, *, iterations: int) -> Tensor:
    """Approximate solutions x of ``operator(x) = b`` for each image, from x = 0.

    Images that have converged stand still while others go on (Hestenes & Stiefel 1952).
    """
    x = torch.zeros_like(b)
    residual = b.clone()
    direction = residual.clone()
    rho = dot(residual, residual)
    done_below = rho * 1e-12 + torch.finfo(b.dtype).tiny
    for _ in range(iterations):
        moving = rho > done_below
        if not bool(moving.any()):
            break
        image = operator(direction)
        curvature = dot(direction, image)
        moving &= curvature > 0
        alpha = torch.where(moving, rho / curvature.where(moving, torch.ones_like(rho)), 0.0)
        x = x + _scale(alpha, direction)
        residual = residual - _scale(alpha, image)
        rho_next = dot(residual, residual)
        beta = torch.where(moving, rho_next / rho.where(moving, torch.ones_like(rho)), 0.0)
        direction = residual + _scale(beta, direction)
        rho = torch.where(moving, rho_next, torch.zeros_like(rho))
    return x


def _scale(factor: Tensor, v: Tensor) -> Tensor:
    return factor.view(-1, *[1] * (v.dim() - 1)) * v
