"""Regularisation: R1 for the discriminator, path length for the generator.

Both are computed every k steps with k times their weight ("lazy"), and Adam's settings are corrected
accordingly (Karras et al. 2020, "Analyzing and Improving", appendix B).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Return the mean over images of |grad_x D(x)|^2 (Mescheder et al. 2018), differentiable."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


class PathLength:
    """Penalises the deviation of |J^T y| from its running mean (StyleGAN2, section 3.2, eq. 4).

    J is the Jacobian of an image with respect to its latents, y is normal noise. The penalty makes
    steps of equal size in W change the image by equal amounts.
    """

    def __init__(self, *, decay: float = 0.01) -> None:
        self.decay = decay
        self.mean = 0.0

    def penalty(self, images: Tensor, ws: Tensor, rng: torch.Generator) -> tuple[Tensor, float]:
        """Return the mean of (length - a)^2, and a, the running mean updated by these images.

        The caller stores a in ``mean``. images (N, C, H, W) are generated from ws (N, L, w_dim), and
        y ~ N(0, 1) / sqrt(H W). An image's length is the root of the squared gradient lengths averaged
        over its L latents.
        """
        noise = torch.randn(images.shape, generator=rng).to(images)
        noise = noise / math.sqrt(images.shape[2] * images.shape[3])
        (gradient,) = torch.autograd.grad((images * noise).sum(), ws, create_graph=True)
        lengths = gradient.square().sum(2).mean(1).sqrt()
        mean = self.mean + self.decay * (lengths.mean() - self.mean)
        return (lengths - mean).square().mean(), float(mean.detach())


def lazy_adam(
    parameters: Iterable[nn.Parameter], rate: float, interval: int | None
) -> torch.optim.Adam:
    """Return Adam with betas (0, 0.99), corrected for a penalty every ``interval`` steps (None: none).

    With the penalty, k steps make k + 1 updates, so the rate is multiplied by k / (k + 1) and the betas
    are raised to this power (StyleGAN2, appendix B).
    """
    share = 1.0 if interval is None else interval / (interval + 1)
    # Fused: one call for all parameters instead of a dozen for each.
    return torch.optim.Adam(parameters, lr=rate * share, betas=(0.0, 0.99**share), fused=True)
