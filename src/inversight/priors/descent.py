"""Gradient descent on latents or images, used to invert public images and by white-box attacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Losses = Callable[[Sequence[Tensor]], Iterable[Tensor]]
"""Variables -> losses of any shape. Their sum is minimised; each part's graph is freed before the next."""


def descend(
    start: Sequence[Tensor], losses: Losses, *,
    optimiser: Callable[[list[Tensor]], torch.optim.Optimizer], steps: int,
    constrain: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None,
    rate: Callable[[float], float] | None = None,
) -> list[Tensor]:  # fmt: skip
    """Return the variables after ``steps`` steps of gradient descent on the sum of ``losses``.

    If each loss depends on one row of the variables, rows are optimised independently of each other.

    Args:
        start: initial values of the variables; not changed.
        losses: the losses of the current variables.
        optimiser: variables -> their optimiser.
        steps: number of steps.
        constrain: projects the variables onto their feasible set, after each step.
        rate: learning rate schedule: fraction of the steps done, (0, 1] -> factor.
    """
    variables = [one.detach().clone().requires_grad_(True) for one in start]
    optimise = optimiser(variables)
    rates = [group["lr"] for group in optimise.param_groups]
    for step in range(steps):
        optimise.zero_grad(set_to_none=True)
        for part in losses(variables):
            gradients = torch.autograd.grad(part.sum(), variables, materialize_grads=True)
            for one, gradient in zip(variables, gradients, strict=True):
                one.grad = gradient if one.grad is None else one.grad + gradient
        if rate is not None:
            for group, full in zip(optimise.param_groups, rates, strict=True):
                group["lr"] = full * rate((step + 1) / steps)
        optimise.step()
        if constrain is not None:
            with torch.no_grad():
                for one, new in zip(variables, constrain(variables), strict=True):
                    one.copy_(new)
    return [one.detach() for one in variables]


def ramp(done: float, *, up: float = 0.05, down: float = 0.25) -> float:
    """Return the learning rate factor in [0, 1] after a fraction ``done`` of the steps.

    Linear warm-up over the first 5 %, cosine decay over the last 25 % (Karras et al. 2020, StyleGAN2,
    appendix D).
    """
    fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1.0 - done) / down))
    return fall * min(1.0, done / up)
