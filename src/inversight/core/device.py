"""Choice of the device, reduced precision and compilation on it, and lack of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from inversight.core.errors import ConfigError, StageError, one_line

_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
"""What CUDA, MPS, the CPU's allocator and cuBLAS say, in lower case."""


def pick_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: it cannot be used here.
    """
    if name == "auto":
        available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        return torch.device(next((kind for kind, there in available.items() if there), "cpu"))
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except Exception as error:
        raise ConfigError(
            f"device {name}: cannot be used here ({one_line(error)}); try cpu"
        ) from None
    return device


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """Return bfloat16 where matrix units are several times faster at it (AMX, tensor cores), else None."""
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        # Not part of PyTorch's documented interface; where it is missing nothing is lost but speed.
        tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
        fast = device.type == "cpu" and tiles is not None and bool(tiles())
    return torch.bfloat16 if fast else None


def reduced_precision(device: torch.device, wanted: bool = True) -> AbstractContextManager[Any]:
    """Return a context that computes in :func:`fast_dtype`, if there is one and it is ``wanted``."""
    dtype = fast_dtype(device) if wanted else None
    if dtype is None:
        return nullcontext()
    # Its cache would hold what is being optimised as it was at the first step.
    return torch.autocast(device.type, dtype, cache_enabled=False)


def compiled(function: Callable[[Tensor], Tensor], *, rows: int) -> Callable[[Tensor], Tensor]:
    """Compile ``function``, which maps each row of (N, ...) independently, for batches of ``rows``.

    Smaller batches are padded, since each size would be compiled anew. Where nothing can be compiled,
    as without a C++ compiler, ``function`` itself is called.
    """
    fast = torch.compile(function, dynamic=False)
    works = True

    def call(x: Tensor) -> Tensor:
        nonlocal works
        if works and len(x) <= rows:
            full = torch.cat([x, x[:1].expand(rows - len(x), *x.shape[1:])])
            try:
                return fast(full)[: len(x)]
            except torch._dynamo.exc.TorchDynamoException:
                works = False
        return function(x)

    return call


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` is a lack of memory, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in _NO_MEMORY)


@contextmanager
def memory_remedy(stage: str, remedy: str) -> Iterator[None]:
    """Turn a lack of memory in the block into an error that says what to lower.

    Raises:
        StageError: "``stage``: out of memory: ``remedy``".
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise StageError(f"{stage}: out of memory: {remedy}") from error
