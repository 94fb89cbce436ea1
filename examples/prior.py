"""A prior: the principal components of public images, which take a second to compute.

Name it in a file for --config, here pca.yaml, and give the audit the same public images:

    prior: {class: prior:Components, public: others/, count: 60}

From the folder that this file is in:

    inversight audit --config pca.yaml --private train/ --holdout unseen/ --public others/

A prior of your own is not adapted to the target. What else a prior can offer to attacks, such as truncation or
a critic, is in inversight/priors/base.py.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from inversight.core.imaging import to_float
from inversight.data import load_images


class Components:
    """Images are the public images' mean plus a weighted sum of their principal components."""

    def __init__(self, *, public: str, count: int = 50) -> None:
        """Compute the components.

        Args:
            public: the public images, in any format that --public takes.
            count: number of components.
        """
        found = load_images(Path(public), role="prior: public", labelled=False)
        images = to_float(found.images)
        flat = images.flatten(1)
        self.image_shape: tuple[int, int, int] = tuple(images.shape[1:])
        self.mean = flat.mean(0)
        _, values, components = torch.linalg.svd(flat - self.mean, full_matrices=False)
        spread = values[:count, None] / len(flat) ** 0.5  # standard deviation along each
        self.components = spread * components[:count]

    def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
        """Return n latents (n, count): normal, as the public images' own are in the mean."""
        return torch.randn(n, len(self.components), generator=rng)

    def __call__(self, latents: Tensor) -> Tensor:
        """Return the images (N, C, S, S) in [0, 1] of latents (N, count), differentiable in them."""
        flat = self.mean + latents @ self.components
        return flat.clamp(0.0, 1.0).unflatten(1, self.image_shape)
