"""Inputs and outputs of a network's layers, recorded during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class BatchNormInput:
    """Input (N, C, ...) of a batch normalisation, and its running mean and variance, each (C,)."""

    values: Tensor
    mean: Tensor
    variance: Tensor


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Return the batch normalisations of ``module`` that keep running statistics."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    return [m for m in norms if m.running_mean is not None and m.running_var is not None]


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    """Return the two-dimensional convolutions of ``module``."""
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


@contextmanager
def record_batch_norms(module: nn.Module) -> Iterator[list[BatchNormInput]]:
    """Record the inputs of :func:`batch_norms` within the block, in order of calls."""
    inputs: list[BatchNormInput] = []

    def record(norm: Any, args: tuple[Tensor], output: Tensor) -> None:
        inputs.append(BatchNormInput(args[0], norm.running_mean, norm.running_var))

    with _hooked(batch_norms(module), record):
        yield inputs


@contextmanager
def record_convolutions(module: nn.Module) -> Iterator[list[Tensor]]:
    """Record the outputs (N, C, H, W) of :func:`convolutions` within the block, in order of calls."""
    outputs: list[Tensor] = []
    with _hooked(convolutions(module), lambda layer, args, output: outputs.append(output)):
        yield outputs


@contextmanager
def _hooked(
    layers: Sequence[nn.Module], hook: Callable[[Any, Any, Tensor], None]
) -> Iterator[None]:
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(hook))
        yield
