"""The metric that an embedding's distance puts on images: M = 2 J^T J.

J is the Jacobian of phi at the image, and M the Hessian of ``delta -> d(x, x + delta)`` at 0
(Li et al. 2025). M is symmetric and positive semi-definite and is never formed: products for a
whole batch cost two passes through the network.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from inversight.embeddings.base import Embedding
from inversight.embeddings.linearised import Map, recorded


@runtime_checkable
class LinearisableEmbedding(Embedding, Protocol):
    """An embedding with products of its own Jacobian that are cheaper than through PyTorch's graph."""

    def gram(self, images: Tensor, dtype: torch.dtype) -> Map:
        """Return v -> J^T J v at ``images``, all (N, C, H, W), computed in ``dtype``."""
        ...


class PullbackMetric:
    """Products with M at a batch of images (N, C, H, W), independently for each image.

    ``dtype`` is the precision of products where the embedding offers a choice; default: the images' own.
    """

    def __init__(
        self, embedding: Embedding, images: Tensor, *, dtype: torch.dtype | None = None
    ) -> None:
        if isinstance(embedding, LinearisableEmbedding):
            self._gram = embedding.gram(images, dtype or images.dtype)
        else:
            self._gram = recorded_gram(embedding, images)

    def product(self, v: Tensor) -> Tensor:
        """Return M v for each image, v and the result (N, C, H, W)."""
        return 2.0 * self._gram(v)


def recorded_gram(embedding: Embedding, images: Tensor) -> Map:
    """Return v -> J^T J v of any embedding that is differentiable twice, by PyTorch's graphs."""
    _, jacobian = recorded(lambda x: torch.cat([b.flatten(1) for b in embedding(x)], 1), images)
    return lambda v: jacobian.pull(jacobian.push(v))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product for each image: (N, ...), (N, ...) -> (N,)."""
    return (a * b).flatten(1).sum(1)
