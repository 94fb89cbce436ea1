"""What every loader returns, and weights that are read without unpickling."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from inversight.core.checkpoints import read_tensors
from inversight.core.errors import one_line
from inversight.models.spec import ModelSpec
from inversight.models.target import Access

CONVERT = (
    "convert it once where you trust it: "
    "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)
"""What to do with a pickle."""


@dataclass(frozen=True)
class LoadedModel:
    """A model as its file gave it; ``channels`` None: to be found by calling it.

    access: the most that the format gives.
    """

    module: nn.Module
    size: int
    channels: int | None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    classes: tuple[str, ...] = ()
    access: Access = Access.WHITE_BOX


def in_batches(call: Callable[[Tensor], Tensor], x: Tensor, batch: int | None) -> Tensor:
    """Return ``call`` of x (N, ...) in parts of ``batch`` rows, the last one filled up; None: at once."""
    if batch is None:
        return call(x)
    parts = []
    for part in x.split(batch):
        missing = batch - len(part)
        whole = torch.cat([part, part[-1:].expand(missing, *x.shape[1:])]) if missing else part
        parts.append(call(whole)[: len(part)])
    return torch.cat(parts)


def read_safetensors(path: Path, model: ModelSpec) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name; nothing is unpickled.

    Raises:
        TargetError: it is not a whole safetensors file.
    """
    try:
        return read_tensors(path)[1]
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            head = file.read(16)
        # Tested only now: a good file begins with its header's length, which can look like a pickle.
        if zipfile.is_zipfile(path) or _is_pickle(head):
            raise model.error(
                f"{path} is a pickle or an archive that may hold one, which can run code when "
                f"loaded; {CONVERT}"
            ) from None
        raise model.error(f"{path} is not a whole safetensors file ({one_line(error)})") from None


def _is_pickle(head: bytes) -> bool:
    return head[:1] == b"\x80" or head.startswith((b"(dp", b"c", b"]q", b"}q"))


def load_weights(module: nn.Module, found: dict[str, Tensor], model: ModelSpec) -> None:
    """Load tensors into a network.

    Raises:
        TargetError: a tensor is missing, superfluous or of another shape.
    """
    try:
        module.load_state_dict(found)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:240]
        raise model.error(
            f"{model.weights} does not fit the network ({reason}); does it belong to another network, "
            "or to other classes?"
        ) from None
