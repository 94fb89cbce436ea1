"""Where the work is done: CPU or GPU, by the name that ``--device`` takes."""

from __future__ import annotations

import torch

from inversight.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is a GPU if there is one.

    Raises:
        ConfigError: it cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name}: cannot be used here ({reason}); try cpu") from None
    return device


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where matrix units are several times faster at it (AMX, tensor cores), else None."""
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        # Not part of PyTorch's documented interface; where it is missing nothing is lost but speed.
        tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
        fast = device.type == "cpu" and tiles is not None and bool(tiles())
    return torch.bfloat16 if fast else None
