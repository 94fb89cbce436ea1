"""Networks with parameters by a fixed rule, and what NVIDIA's published code made of them.

``golden.json`` holds images, logits and w computed by the published code (github.com/NVlabs/
stylegan2-ada-pytorch, the commit is in the file) on a CPU in float32, for networks whose state was
set by :func:`fill`, on the latents of :func:`latents`; and names and shapes of the states of the
published configurations at full size, as a digest. None of that code is here.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FILE = Path(__file__).with_name("golden.json")


def read() -> dict[str, Any]:
    """The file's content."""
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Set parameters and buffers, but filters, from NumPy's frozen generator seeded by their name."""
    for name, tensor in module.state_dict().items():
        if not name.endswith("resample_filter"):
            drawn = _drawn(name, tuple(tensor.shape), *_distribution(name))
            tensor.copy_(torch.from_numpy(drawn))


def latents(n: int, z_dim: int, c_dim: int) -> tuple[Tensor, Tensor]:
    """z (n, z_dim) and one-hot classes c (n, c_dim), float32."""
    z = torch.from_numpy(_drawn("z", (n, z_dim), 0.0, 1.0)).float()
    c = torch.zeros(n, c_dim)
    for i in range(n if c_dim else 0):
        c[i, (3 * i) % c_dim] = 1.0
    return z, c


def pick(values: Tensor, count: int = 40) -> Tensor:
    """``count`` values spread over a tensor."""
    flat = values.detach().flatten()
    return flat[torch.arange(count) * 7919 % len(flat)]


def digest(module: nn.Module) -> dict[str, Any]:
    """Number of tensors and of their elements, and a hash of all names and shapes."""
    shapes = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    text = json.dumps(sorted(shapes.items()))
    return {
        "tensors": len(shapes),
        "elements": sum(tensor.numel() for tensor in module.state_dict().values()),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _distribution(name: str) -> tuple[float, float]:
    """Mean and deviation that keep images and logits of the order of 1."""
    if name.endswith("affine.bias"):
        return 1.0, 0.1
    if name.startswith("mapping.fc"):  # used times a learning-rate multiplier of 0.01
        return 0.0, 100.0 if name.endswith("weight") else 10.0
    small = name.endswith(("bias", "noise_strength", "w_avg"))
    return 0.0, 0.1 if small else 1.0


def _drawn(
    name: str, shape: tuple[int, ...], mean: float, deviation: float
) -> np.ndarray[Any, Any]:
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    return np.asarray(mean + deviation * rng.standard_normal(shape))
