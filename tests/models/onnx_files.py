"""ONNX files that PyTorch and the onnx package write."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from inversight.core.seeding import generator


class Network(nn.Module):
    """Logits (N, K) of images (N, C, H, W), or (N, H, W, C) with ``last``; ``softmax``: probabilities."""

    def __init__(
        self, classes: int = 3, channels: int = 1, *, last: bool = False, softmax: bool = False
    ) -> None:
        super().__init__()
        self.last, self.softmax = last, softmax
        self.conv = nn.Conv2d(channels, 4, 3)
        self.head = nn.Linear(16, classes)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator(5, len(p)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2) if self.last else x
        x = self.head(torch.relu(nn.functional.max_pool2d(self.conv(x), 3)).flatten(1))
        return x.softmax(1) if self.softmax else x


def export(
    module: nn.Module, file: Path, *, batch: int | None = None, shape: tuple[int, ...] = (1, 8, 8),
    free: tuple[int, ...] = (), **options: Any,
) -> Path:  # fmt: skip
    """Write ``module`` for images of ``shape``; ``batch`` None: any; ``free``: more free dimensions."""
    axes = {i: f"d{i}" for i in ((*free,) if batch else (0, *free))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (torch.rand(batch or 2, *shape),), str(file), dynamo=False,
            input_names=["pixels"], output_names=["scores"], opset_version=17,
            dynamic_axes={"pixels": axes, "scores": {0: "d0"}} if axes else None, **options,
        )  # fmt: skip
    return file


def external(file: Path, location: str = "weights.bin") -> Path:
    """Move the weights of ``file`` to a file beside it, and name it as ``location``."""
    model = onnx.load(str(file))
    file.unlink()
    onnx.save(
        model, str(file), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    model = onnx.load(str(file), load_external_data=False)
    for tensor in model.graph.initializer:
        for one in tensor.external_data:
            if one.key == "location":
                one.value = location
    file.write_bytes(model.SerializeToString())
    return file


def answers(file: Path, images: Tensor) -> Tensor:
    """What onnxruntime itself gives, image by image."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    rows = [session.run(None, {name: one[None].numpy()})[0] for one in images]
    return torch.from_numpy(np.concatenate(rows))
