"""Several processes that train one prior, each with its share of every batch, or run one attack.

``accelerate launch -m inversight prior train ...`` starts them (Hugging Face's accelerate, an extra
of this package). Gradients are averaged here after each backward pass and not by
``DistributedDataParallel``, whose hooks do not survive penalties that differentiate twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from inversight.core.device import pick_device
from inversight.core.errors import ConfigError, InputError, InversightError, StageError

T = TypeVar("T")

_PATIENCE = timedelta(days=30)
"""How long a process waits for the others, whose shares of the work may take much longer. It is not
needed to notice a process that dies: the launcher then ends the others."""


class Processes:
    """This process and the others that it was launched with, if any."""

    def __init__(self, accelerator: Any = None, group: Any = None) -> None:
        self._accelerator = accelerator
        self._group = group  # sends through the CPU's memory, which results may fill up
        self.count: int = 1 if accelerator is None else accelerator.num_processes
        self.index: int = 0 if accelerator is None else accelerator.process_index
        self.error_shared = False
        """Whether all processes know of an error, so that only the main one needs to report it."""

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.index == 0

    def device(self, name: str) -> torch.device:
        """Return the device that ``--device`` names, or this process's own of several.

        Raises:
            ConfigError: it cannot be used here.
        """
        return pick_device(name) if self.count == 1 else torch.device(self._accelerator.device)

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
        """Return the mean of each value over the processes."""
        if self.count == 1:
            return list(values)
        mine = torch.tensor(values, dtype=torch.float64, device=self._accelerator.device)
        return list(self._accelerator.reduce(mine, reduction="mean").tolist())

    def gathered(self, own: T) -> list[T]:
        """Return the object of each process, in their order."""
        found = [own] * self.count
        if self.count > 1:
            torch.distributed.all_gather_object(found, own, group=self._group)
        return found

    def to_main(self, own: Mapping[str, Tensor] | None) -> list[dict[str, Tensor]] | None:
        """Return the tensors of each process that has any, in their order, on the CPU; None if not main.

        Only the main process holds them all.
        """
        tensors = None if own is None else {name: t.cpu().clone() for name, t in own.items()}
        found = [tensors] * self.count if self.main else None
        if self.count > 1:
            torch.distributed.gather_object(tensors, found, dst=0, group=self._group)
        return None if found is None else [one for one in found if one is not None]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise in all processes at the end of the block if one of them raised in it.

        Nothing in the block may wait for the other processes.

        Raises:
            InversightError: the error of this process, or else of the first process with one. Any
                other exception of another process becomes a :class:`StageError`.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        reasons = self.gathered(None if error is None else _reason(error))
        failed = next(((i, *reason) for i, reason in enumerate(reasons) if reason), None)
        if failed is None:
            return
        self.error_shared = True
        if error is not None:
            raise error
        index, kind, text = failed
        raise kind(f"process {index} of {self.count}: {text}")

    def precision(self) -> AbstractContextManager[Any]:
        """Return a context for forward passes in the precision given to ``accelerate launch``."""
        return nullcontext() if self._accelerator is None else self._accelerator.autocast()

    def wait(self) -> None:
        """Wait until all processes call this."""
        if self.count > 1:
            self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the group when all processes call this; leaving early can end the others."""
        if self.count > 1:
            self.wait()
            self._accelerator.end_training()


def _reason(error: Exception) -> tuple[type[InversightError], str]:
    """Return the kind and the text of the error that the other processes raise for ``error``."""
    text = str(error) if isinstance(error, InversightError) else f"{type(error).__name__}: {error}"
    return InputError if isinstance(error, InputError) else StageError, text


ALONE = Processes()


def launched(device: str = "auto") -> Processes:
    """Return the processes that ``accelerate launch`` or torchrun started, or this one alone.

    With ``device`` cpu several processes do not use GPUs.

    Raises:
        ConfigError: accelerate is needed and not installed, or the precision is float16, which needs
            scaled losses.
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
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError:
        raise ConfigError(
            "launched as one of several processes, or in another precision, which needs accelerate: "
            "pip install 'inversight[gpus]'"
        ) from None
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )
    group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE) if several else None
    return Processes(accelerator, group)
