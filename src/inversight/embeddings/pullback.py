"""The metric that an embedding's distance puts on images: M = 2 J^T J.

J is the Jacobian of phi at the image, and M the Hessian of ``delta -> d(x, x + delta)`` at 0
(METHOD section 3). M is symmetric and positive semi-definite and is never formed: products for a
whole batch cost two backward passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inversight.embeddings.base import Embedding


class PullbackMetric:
    """Products with M at a batch of images (N, C, H, W); image i's M never mixes with image j's.

    Reverse over reverse: u -> J^T u is linear, so its own derivative gives J v. Both graphs are
    built once and used for every product.
    """

    def __init__(self, embedding: Embedding, images: Tensor) -> None:
        with torch.enable_grad():
            self._images = images.detach().requires_grad_(True)
            self._features = torch.cat([b.flatten(1) for b in embedding(self._images)], dim=1)
            self._dual = torch.zeros_like(self._features).requires_grad_(True)
            (self._pulled,) = torch.autograd.grad(
                self._features, self._images, self._dual, create_graph=True
            )

    def product(self, v: Tensor) -> Tensor:
        """M v for each image, v and the result (N, C, H, W)."""
        (jv,) = torch.autograd.grad(self._pulled, self._dual, v, retain_graph=True)
        (jtjv,) = torch.autograd.grad(self._features, self._images, jv, retain_graph=True)
        return 2.0 * jtjv

    def largest_eigenvalue(self, start: Tensor, iterations: int) -> Tensor:
        """A lower estimate of each image's largest eigenvalue, (N,), by power iteration from ``start``."""
        v = _unit(start)
        value = torch.zeros(len(v), device=v.device, dtype=v.dtype)
        for _ in range(iterations):
            mv = self.product(v)
            value = dot(v, mv)
            v = _unit(mv)
        return value


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product for each image: (N, ...), (N, ...) -> (N,)."""
    return (a * b).flatten(1).sum(1)


def _unit(v: Tensor) -> Tensor:
    norm = dot(v, v).sqrt().clamp_min(torch.finfo(v.dtype).tiny ** 0.5)
    return v / norm.view(-1, *[1] * (v.dim() - 1))
