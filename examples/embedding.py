"""An embedding: images are compared by their edges, whatever their brightness.

From the folder that this file is in:

    inversight audit --embedding embedding:Edges

Distances, scores and flags then use it. The distance between two images is the sum of squared differences
between what the embedding returns for them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 32


class Edges:
    """Sobel derivatives of the grey image at 32x32."""

    name = "edges"

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return two blocks (N, 1024): horizontal and vertical derivatives.

        Args:
            images: (N, C, H, W) in [0, 1], C 1 or 3, any size. Results are differentiable in them.
        """
        grey = images.mean(1, keepdim=True)
        grey = F.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True)
        grey = F.pad(grey, (1, 1, 1, 1), mode="replicate")
        sobel = torch.tensor([[1.0, 2.0, 1.0]]).T @ torch.tensor([[-1.0, 0.0, 1.0]]) / 8.0
        kernels = torch.stack([sobel, sobel.T])[:, None].to(grey)
        across, down = F.conv2d(grey, kernels).flatten(2).unbind(1)
        return across / SIDE, down / SIDE  # so that the distance is a mean over pixels
