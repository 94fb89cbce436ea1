"""Several processes that train one prior, each with its share of every batch.

``accelerate launch -m inversight prior train ...`` starts them (Hugging Face's accelerate, an extra
of this package). Gradients are averaged here after each backward pass and not by
``DistributedDataParallel``, whose hooks do not survive penalties that differentiate twice.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from inversight.device import pick_device
from inversight.errors import ConfigError


class Processes:
    """This process and the others; alone unless :func:`launched` found others."""

    def __init__(self, accelerator: Any = None) -> None:
        self._accelerator = accelerator
        self.count: int = 1 if accelerator is None else accelerator.num_processes
        self.index: int = 0 if accelerator is None else accelerator.process_index

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.index == 0

    def device(self, name: str) -> torch.device:
        """What ``--device`` names; with several processes, this one's own.

        Raises:
            ConfigError: it cannot be used here.
        """
        if self.count == 1:
            return pick_device(name)
        device: torch.device = self._accelerator.device
        return device

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, which hold equal shapes."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        mean = self._accelerator.reduce(flat, reduction="mean")
        for t, part in zip(tensors, mean.split([t.numel() for t in tensors]), strict=True):
            t.copy_(part.view(t.shape))

    def means(self, values: Sequence[float]) -> list[float]:
        """Each value's mean over the processes."""
        if self.count == 1:
            return list(values)
        mine = torch.tensor(values, dtype=torch.float64, device=self._accelerator.device)
        mean: list[float] = self._accelerator.reduce(mine, reduction="mean").tolist()
        return mean

    def precision(self) -> AbstractContextManager[Any]:
        """The context for forward passes in the precision that ``accelerate launch`` was given."""
        return nullcontext() if self._accelerator is None else self._accelerator.autocast()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Part from the others once all are here: who leaves early can bring the others down."""
        if self.count > 1:
            self.wait()
            self._accelerator.end_training()


ALONE = Processes()


def launched(device: str = "auto") -> Processes:
    """What ``accelerate launch`` or torchrun started this process among; alone if nothing did.

    ``device`` cpu keeps several processes off the GPUs.

    Raises:
        ConfigError: it was launched so, and accelerate is not installed; or in half precision that
            needs its losses scaled.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if not several and precision == "no":
        return ALONE
    if precision not in ("no", "bf16"):
        raise ConfigError(
            f"--mixed_precision {precision}: expected no or bf16; the published configurations have "
            "half precision of their own"
        )
    try:
        from accelerate import Accelerator
    except ImportError:
        raise ConfigError(
            "launched as one of several processes, or in another precision, which needs accelerate: "
            "pip install 'inversight[gpus]'"
        ) from None
    return Processes(Accelerator(cpu=device == "cpu", mixed_precision=precision))
