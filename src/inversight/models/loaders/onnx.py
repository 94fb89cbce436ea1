"""``FILE.onnx``: a graph that onnxruntime evaluates, which gives scores and no gradients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from inversight.core.errors import one_line
from inversight.core.imaging import size_text
from inversight.models.loaders.base import LoadedModel, in_batches
from inversight.models.spec import ModelSpec
from inversight.models.target import Access

SUFFIX = ".onnx"
Layout = Literal["NCHW", "NHWC"]

_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(uint8)": torch.uint8,
}
"""Types of the input, as onnxruntime names them."""


def load_onnx(path: Path, model: ModelSpec, *, size: tuple[int, int]) -> LoadedModel:
    """Read the graph, its layout, input size and batch size, on one thread of the CPU.

    Pixels are given to the graph in [0, 1], less mean and divided by std; to a graph of bytes as 0 to
    255. No file outside the folder of ``path`` is read.

    Raises:
        TargetError: onnx or onnxruntime is missing; damaged; weights are in a file that is missing or
            outside the folder; the graph does not take one image batch.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise model.error(
            "an ONNX file needs onnxruntime: pip install 'inversight[onnx]'"
        ) from None
    try:
        graph = onnx.load(str(path), format="protobuf", load_external_data=False)
    except Exception as error:
        raise model.error(f"is not an ONNX file ({one_line(error)})") from None
    _check_external(graph, path, model)
    try:
        session = onnxruntime.InferenceSession(
            str(path), _options(onnxruntime), providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        opsets = {one.domain or "ai.onnx": one.version for one in graph.opset_import}
        raise model.error(
            f"onnxruntime {onnxruntime.__version__} cannot load it, opset {opsets} ({one_line(error)})"
        ) from None
    inputs = [one for one in session.get_inputs() if len(one.shape) == 4]
    if len(session.get_inputs()) != 1 or not inputs or inputs[0].type not in _TYPES:
        found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in session.get_inputs())
        raise model.error(f"expected one input of images (N, C, H, W), found {found or 'none'}")
    (images,) = inputs
    layout = layout_of(graph.graph, images.name, images.shape)
    batch, *dims = (one if isinstance(one, int) and one > 0 else None for one in images.shape)
    channels, height, width = dims if layout == "NCHW" else (dims[2], dims[0], dims[1])
    shape = (height or size[0], width or size[1])
    if channels not in (None, 1, 3):
        raise model.error(f"expected images of 1 or 3 channels, found {images.shape} ({layout})")
    if model.size is not None and size != shape:
        raise model.error(f"takes {shape[0]}x{shape[1]} images; give --size {size_text(shape)}")
    if _TYPES[images.type] is torch.uint8 and (model.mean or model.std):
        raise model.error("takes bytes and normalises them itself; leave --mean and --std out")
    module = OnnxNetwork(session, layout, batch, _TYPES[images.type])
    return LoadedModel(module, shape, channels, access=Access.SCORES)


class OnnxNetwork(nn.Module):
    """An ONNX graph: images (N, C, H, W) -> its first output, or the one called ``logits``, as float32.

    batch: number of images that it takes at once; None: any. dtype: of its input.
    """

    def __init__(self, session: Any, layout: Layout, batch: int | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.layout, self.batch, self.dtype = layout, batch, dtype
        self._session = session
        self._input = session.get_inputs()[0].name
        names = [one.name for one in session.get_outputs()]
        self._output = "logits" if "logits" in names else names[0]

    def forward(self, x: Tensor) -> Tensor:
        given = x.detach().cpu()
        if self.dtype is torch.uint8:
            given = given.mul(255.0).round().clamp(0.0, 255.0)
        if self.layout == "NHWC":
            given = given.permute(0, 2, 3, 1)
        return in_batches(self._run, given.to(self.dtype), self.batch).to(x.device)

    def _run(self, x: Tensor) -> Tensor:
        (found,) = self._session.run([self._output], {self._input: x.contiguous().numpy()})
        return torch.from_numpy(found).float()


def layout_of(graph: Any, name: str, shape: list[Any]) -> Layout:
    """Return whether the graph's input called ``name``, of ``shape`` (4 numbers or names), is NHWC.

    By the dimension of 1 or 3 channels. Where that does not tell, NHWC is a graph that begins by moving
    the last dimension to the second place.
    """
    first, last = (shape[i] in (1, 3) for i in (1, 3))
    if first != last:
        return "NCHW" if first else "NHWC"
    for node in graph.node:
        if name in node.input:
            moved = [list(one.ints) for one in node.attribute if one.name == "perm"]
            return "NHWC" if node.op_type == "Transpose" and moved == [[0, 3, 1, 2]] else "NCHW"
    return "NCHW"


def _options(onnxruntime: Any) -> Any:
    """Return settings under which an answer does not depend on threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # errors come as exceptions
    return options


def _check_external(graph: Any, path: Path, model: ModelSpec) -> None:
    """Refuse weights in files that are missing or outside the folder of ``path``."""
    folders = (path.parent.resolve(), path.resolve().parent)  # the file itself may be a link
    for name in sorted(set(_external_files(graph))):
        file = (path.parent / name).resolve()
        if not any(file.is_relative_to(folder) for folder in folders):
            raise model.error(f"names weights in {name}, outside its folder, which is not read")
        if not file.is_file():
            raise model.error(
                f"its weights are in {name}, which is not there; copy that file to {path.parent}"
            )


def _external_files(message: Any) -> Iterator[str]:
    """Yield the files that tensors anywhere in a message are in."""
    if message.DESCRIPTOR.name == "TensorProto":
        if message.data_location == message.EXTERNAL:
            yield from (one.value for one in message.external_data if one.key == "location")
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in (value,) if hasattr(value, "DESCRIPTOR") else value:
                yield from _external_files(one)
