"""What every stage of an audit and every single command is run with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from inversight.core.console import Reporter
from inversight.core.processes import ALONE, Processes
from inversight.core.seeding import generator


@dataclass(frozen=True)
class Context:
    """What a stage is run with.

    processes: each calls the stage with the same arguments; the main one writes. hide: applied to names
    of images and classes before they are written.
    """

    seed: int
    device: torch.device
    reporter: Reporter
    processes: Processes = ALONE
    hide: Callable[[str], str] = str

    def rng(self, name: str) -> torch.Generator:
        """Return the random numbers of the stage called ``name``."""
        return generator(self.seed, name)
