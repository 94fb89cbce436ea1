"""Losses of an attacker on the target's logits: ``(logits, labels) -> loss of each sample``.

logits: (N, K). labels: (N,) int64. The result is (N,); lower is nearer to the attacker's aim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Objective = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, K) and labels (N,) -> loss (N,), differentiable in the logits."""


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of softmax(logits) in nats, in [0, log K] (Li et al. 2025)."""
    log_p = F.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log softmax(logits)[label], in [0, inf)."""
    return F.cross_entropy(logits, labels, reduction="none")


def poincare(logits: Tensor, labels: Tensor, *, xi: float = 1e-4) -> Tensor:
    """Return the hyperbolic distance of the L1-normalised logits to the label's corner, in [0, inf).

    Struppek et al. 2022 (Plug & Play), eq. 4-5: ``arccosh(1 + 2|u - v|^2 / ((1-|u|^2)(1-|v|^2)))``
    with u the logits over their L1 norm and v the one-hot label less xi, clamped to [0, 1].
    """
    u = logits / logits.abs().sum(1, keepdim=True).clamp_min(1e-12)
    v = (F.one_hot(labels, logits.shape[1]).to(logits) - xi).clamp(0.0, 1.0)
    u_norm, v_norm = u.square().sum(1), v.square().sum(1)
    ratio = 2.0 * (u - v).square().sum(1) / ((1.0 - u_norm).clamp_min(1e-7) * (1.0 - v_norm))
    # The derivative of arccosh is infinite at 1; the floor keeps a perfect match finite.
    return torch.acosh(1.0 + ratio.clamp_min(1e-7))


def max_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the largest other logit minus the label's, in (-inf, inf); < 0 if it is predicted.

    Yuan et al. 2023 (PLG-MI), eq. 5. Unlike cross-entropy's its gradient does not vanish.
    """
    own = labels[:, None]
    others = logits.scatter(1, own, float("-inf"))
    return others.amax(1) - logits.gather(1, own).squeeze(1)


def logit(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -logits[label], in (-inf, inf): first term of the logit loss, Nguyen et al. 2023, eq. 3."""
    return -logits.gather(1, labels[:, None]).squeeze(1)


ObjectiveName = Literal["cross-entropy", "poincare", "max-margin", "logit"]

OBJECTIVES: Mapping[ObjectiveName, Objective] = {
    "cross-entropy": cross_entropy,
    "poincare": poincare,
    "max-margin": max_margin,
    "logit": logit,
}
"""The objectives that use a label, as an attack on a class needs."""
