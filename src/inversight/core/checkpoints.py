"""Checkpoints of trainings: networks, optimisers, further tensors and facts in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from inversight.core.errors import DataError, one_line
from inversight.core.run import atomic_file

Modules = Mapping[str, nn.Module]
Optimisers = Mapping[str, Optimizer]

UNREADABLE = (SafetensorError, OSError, KeyError, ValueError, RuntimeError)
"""What reading a damaged or foreign file of tensors raises."""


def save_state(
    path: Path, kind: str, facts: Any, *, modules: Modules, optimisers: Optimisers,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Write the state to ``path`` atomically, with ``facts`` as JSON under the name ``kind``."""
    found = dict(tensors or {})
    for name, module in modules.items():
        found |= {f"{name}/{k}": v for k, v in module.state_dict().items()}
    for name, optimiser in optimisers.items():
        for i, state in optimiser.state_dict()["state"].items():
            found |= {f"{name}/{i}/{k}": v for k, v in state.items()}
    found = {k: v.detach().cpu().contiguous() for k, v in found.items()}
    with atomic_file(path) as partial:
        save_file(found, partial, metadata={kind: json.dumps(facts)})


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and all tensors of a safetensors file.

    Raises:
        SafetensorError, OSError: it cannot be read.
    """
    with safe_open(path, "pt") as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        return handle.metadata() or {}, tensors


def tensors_below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors called ``name/REST`` by REST: the state of one network among several."""
    prefix = f"{name}/"
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def load_state(path: Path, kind: str, *, modules: Modules, optimisers: Optimisers) -> Any:
    """Load what :func:`save_state` wrote into networks and optimisers, and return its facts.

    Call it within :func:`reading`, which turns any error into one about the file.
    """
    metadata, tensors = read_tensors(path)
    facts = json.loads(metadata[kind])
    for name, module in modules.items():
        module.load_state_dict(tensors_below(tensors, name))
    for name, optimiser in optimisers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors_below(tensors, name).items():
            index, field = key.split("/")
            state.setdefault(int(index), {})[field] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        _lay_out(optimiser)
    return facts


def _lay_out(optimiser: Optimizer) -> None:
    """Give the state of each parameter the parameter's memory layout, which fused optimisers require."""
    for parameter, state in optimiser.state.items():
        for field, value in state.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                state[field] = torch.empty_like(parameter).copy_(value)


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn errors in the block, which reads a checkpoint of ``what``, into one that says what to do.

    Raises:
        DataError: the file is damaged, or of something else.
    """
    try:
        yield
    except UNREADABLE as error:
        raise DataError(
            f"{path}: not a checkpoint of this {what} ({one_line(error)}); go on with the settings it began "
            "with, or remove it to begin again"
        ) from error
