"""Random tensors of known seeds."""

from __future__ import annotations

import torch
from torch import Tensor


def rng(seed: int = 0) -> torch.Generator:
    """Return a generator with this seed."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return values from N(0, 1)."""
    return torch.randn(*shape, generator=rng(seed), dtype=dtype)


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return values in [0, 1)."""
    return torch.rand(*shape, generator=rng(seed), dtype=dtype)


def noise(n: int, size: int = 16, channels: int = 3, seed: int = 0) -> Tensor:
    """Return images of noise, uint8 (n, channels, size, size)."""
    return torch.randint(0, 256, (n, channels, size, size), generator=rng(seed)).to(torch.uint8)
