"""What turns a gradient on images into the step of steepest descent under a perceptual metric.

A preconditioner maps images (N, C, H, W) in [0, 1] and gradients of the same shape to gradients of
the same shape, image by image. Those that approximate keep what is known of their last call in
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
    """Images and gradients, both (N, C, H, W) -> gradients (N, C, H, W)."""

    def __call__(self, images: Tensor, gradients: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Identity:
    """Leaves the gradient as it is: the ``entropy`` arm."""

    def __call__(self, images: Tensor, gradients: Tensor) -> Tensor:
        return gradients


@dataclass(frozen=True)
class Damped:
    """(M + eps I)^-1 g by Lanczos from g, M = 2 J^T J at the images at hand.

    eps = ``damping`` times each image's largest eigenvalue, so that one value fits all embeddings
    and image sizes. Unlike the published inverse of the top eigenspace (Li et al. 2025), which
    drops what lies outside of it, directions that the metric does not see are kept, at most
    1 / ``damping`` times as strongly as those it sees best.

    The Krylov spaces of M and of M + eps I from g are one, so that ``iterations`` products with M
    give the eigenvalue (the largest Ritz value, from below), the conjugate-gradient iterate for that
    eps (Hestenes & Stiefel 1952), and its residual. Exact once the space is exhausted.

    ``half``: products in bfloat16 where the hardware is faster at it and the embedding can; that
    changes M v by about 1 % and the direction by less (``benchmarks/natural_gradient.py``).

    ``logged``, means over the images whose gradient is not zero: ``residual``, |(M + eps I) x - g| /
    |g|, and ``energy``, the share of |g|^2 in directions with an eigenvalue of eps or more, by Gauss
    quadrature (Golub & Meurant 1994); the rest is what the metric hardly sees.
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
        # Where the metric vanishes (a flat image, a zero gradient) any positive damping will do.
        eps = (self.damping * ritz.values[:, :1]).clamp_min(1e-12)
        # The basis begins with g / |g|: its coordinates in the Ritz vectors, and the solution's.
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
    """Write to ``logged`` each value's mean over the images that ``counted`` (N,) marks, or 0."""
    number = max(1, int(counted.sum()))
    for name, value in values.items():
        logged[name] = float(value[counted].sum()) / number
