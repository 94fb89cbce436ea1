"""TorchScript and torch.export files, whose loading runs code."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from inversight.core.errors import one_line
from inversight.core.imaging import size_text
from inversight.models.loaders.base import LoadedModel, in_batches
from inversight.models.loaders.weights import is_pickle, read_parts
from inversight.models.spec import ModelSpec


def load_program(path: Path, model: ModelSpec, *, size: tuple[int, int]) -> LoadedModel:
    """Load the program if ``model.trust`` allows it; an exported one has a size of its own.

    Raises:
        TargetError: not trusted, another kind of file, damaged, or exported for another size.
    """
    kind = _kind(path)
    if kind is None:
        if is_pickle(path):
            read_parts(path, model)
            raise model.error(
                "holds weights without their network; name it, as in "
                f"timm:resnet18?weights={path}, torchvision:resnet18?weights={path} or "
                f"package.module:factory?weights={path}"
            )
        raise model.error(
            "is of an unknown kind; expected safetensors, a PyTorch checkpoint behind ?weights=, "
            "TorchScript or torch.export"
        )
    if not model.trust:
        raise model.error(
            f"is a {kind} file, and loading it runs code that is inside it; if you trust where it "
            "comes from, add --trust-target"
        )
    try:
        if kind == "TorchScript":
            scripted = torch.jit.load(str(path), map_location="cpu")
            return LoadedModel(_Scripted(scripted), size, None)
        program = torch.export.load(path)
    except Exception as error:
        raise model.error(f"could not be loaded as {kind} ({one_line(error)})") from error
    batch, channels, height, width = _input_shape(program, model)
    shape = (int(height), int(width))
    if model.size is not None and size != shape:
        raise model.error(
            f"was exported for {height}x{width} images; give --size {size_text(shape)}"
        )
    fixed = batch if isinstance(batch, int) else None
    return LoadedModel(_Exported(program.module(), fixed), shape, int(channels))


def _kind(path: Path) -> str | None:
    """Return "TorchScript" or "torch.export" by the names inside the archive, None for others."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    # Both kinds lie below one top folder; an exported program holds its serialised graph.
    inner = [n.partition("/")[2] or n for n in names]
    if any(n.endswith(".json") and ("models/" in n or "exported_program" in n) for n in names):
        return "torch.export"
    if any(n.startswith("code/") for n in inner) and "constants.pkl" in inner:
        return "TorchScript"
    return None


def _input_shape(
    program: torch.export.ExportedProgram, model: ModelSpec
) -> tuple[int | torch.SymInt, ...]:
    users = set(program.graph_signature.user_inputs)
    shapes = [
        tuple(node.meta["val"].shape)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in users
    ]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise model.error(f"expected a model of one input (N, C, H, W), found inputs {shapes}")
    return shapes[0]


class _Scripted(nn.Module):
    """A TorchScript module, which cannot be a child because it refuses attributes of nn.Module."""

    def __init__(self, scripted: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.scripted = scripted.eval()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scripted(x)
        return out


class _Exported(nn.Module):
    """An exported program, called in chunks if it was exported for one batch size."""

    def __init__(self, module: nn.Module, batch: int | None) -> None:
        super().__init__()
        self.module = module
        self.batch = batch

    def train(self, mode: bool = True) -> _Exported:
        # An exported program's mode is fixed, and setting it raises.
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return in_batches(self.module, x, self.batch)
