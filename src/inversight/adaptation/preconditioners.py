"""Preconditioners: they turn a gradient on images into the natural gradient under a perceptual metric.

A preconditioner maps images (N, C, H, W) in [0, 1] and gradients of the same shape to gradients of
the same shape, each image separately. Approximate ones record the accuracy of the last call in
``logged``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from inversight.adaptation.krylov import Krylov
from inversight.core.device import fast_dtype
from inversight.embeddings.base import Embedding
from inversight.embeddings.pullback import PullbackMetric


class Preconditioner(Protocol):
    """Maps images and gradients, both (N, C, H, W), to gradients (N, C, H, W)."""

    def __call__(self, images: Tensor, gradients: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Damped:
    """Computes (M + eps I)^-1 g by the Lanczos method started at g, where M = 2 J^T J at the images.

    eps is ``damping`` times the largest eigenvalue of the image's M, so that one value of ``damping``
    suits all embeddings and image sizes. The published inverse of the top eigenspace (Li et al. 2025)
    drops the rest of the gradient. Here directions with small eigenvalues are kept, scaled up by at
    most 1 / ``damping`` relative to the direction of the largest eigenvalue.

    M and M + eps I have the same Krylov space from g. So ``iterations`` products with M give the
    largest eigenvalue (the largest Ritz value, a lower bound), the conjugate-gradient iterate for that
    eps (Hestenes & Stiefel 1952), and its residual. The result is exact once the space is exhausted.

    ``half``: compute products in bfloat16 where the hardware is faster at it and the embedding
    supports it. This changes M v by about 1 %, and the direction of the result by less
    (``benchmarks/natural_gradient.py``).

    ``logged`` holds means over the images whose gradient is not zero. ``residual`` is
    |(M + eps I) x - g| / |g|. ``energy`` is the fraction of |g|^2 in directions with an eigenvalue of
    eps or more, by Gauss quadrature (Golub & Meurant 1994).
    """

    embedding: Embedding
    damping: float = 0.1
    iterations: int = 3
    half: bool = True
    logged: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, images: Tensor, gradients: Tensor) -> Tensor:
        dtype = fast_dtype(images.device) if self.half else None
        product = PullbackMetric(self.embedding, images, dtype=dtype).product
        space = Krylov(product, gradients[:, None], steps=self.iterations)
        length = space.root[:, 0, 0].cpu().double()
        for _ in range(self.iterations):
            space.extend()
            if space.spent:
                break
        ritz = space.ritz()
        # If the metric vanishes (a flat image, a zero gradient), any positive damping works.
        eps = (self.damping * ritz.values[:, :1]).clamp_min(1e-12)
        # The first basis vector is g / |g|: its coordinates in the Ritz vectors, then the solution's.
        along = ritz.vectors[:, 0]
        solution = along / (ritz.values + eps)
        log_means(
            self.logged,
            length > 0,
            residual=(ritz.last[:, 0] * solution).sum(1).abs(),
            energy=(along.square() * (ritz.values >= eps)).sum(1),
        )
        weights = length[:, None] * (ritz.vectors @ solution[:, :, None])[:, :, 0]
        return (weights.to(gradients)[:, None] @ space.basis).view_as(gradients)


def log_means(logged: dict[str, float], counted: Tensor, **values: Tensor) -> None:
    """Write each value's mean over the images with true ``counted`` (N,) to ``logged``; 0 without any."""
    number = max(1, int(counted.sum()))
    for name, value in values.items():
        logged[name] = float(value[counted].sum()) / number
