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
