"""What every stage of an audit and every single command is run with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inversight.core.console import Reporter
from inversight.core.processes import ALONE, Processes
from inversight.core.seeding import generator


@dataclass(frozen=True)
class Context:
    """What a stage is run with.

    processes: all of them call the stage with the same arguments; the main one writes.
    """

    seed: int
    device: torch.device
    reporter: Reporter
    processes: Processes = ALONE

    def rng(self, name: str) -> torch.Generator:
        """Return the random numbers of the stage called ``name``."""
        return generator(self.seed, name)
