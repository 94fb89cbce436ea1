"""Explicit randomness: every generator is derived from a seed and the name of its use.

A stage (and each step of a long stage) gets its own generator from ``(seed, *path)``, so a run that
was stopped and resumed draws the same numbers as one that was not, and no part's draws depend on
how many another part made.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *path: str | int) -> int:
    """Return a seed in [0, 2**63) for the use named by ``path``; other paths give independent seeds."""
    text = "/".join([str(seed), *map(str, path)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """Return a CPU generator for the use named by ``path`` (see :func:`derive_seed`)."""
    return torch.Generator().manual_seed(derive_seed(seed, *path))


def draw_seed(rng: torch.Generator) -> int:
    """Draw one seed in [0, 2**62) from ``rng``, for a loop that derives one generator per step."""
    return int(torch.randint(2**62, (), generator=rng))


def follow(rng: torch.Generator, device: torch.device) -> torch.Generator:
    """Return ``rng`` if it is on ``device``, else a generator there, seeded by a draw from ``rng``."""
    if rng.device.type == device.type:
        return rng
    return torch.Generator(device).manual_seed(draw_seed(rng))
