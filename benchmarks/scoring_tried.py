"""Settings tried to make LPIPS (VGG16, 256 x 256) faster, and their times.

uv run python benchmarks/scoring_tried.py            24 images, three rounds
uv run python benchmarks/scoring_tried.py --small    8 images of 128 x 128

Each row times the network alone in one setting. *relative error* is the largest one of all pairwise
distances, against the same network in float32; scores are promised to 1e-5.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from common import finish, parser
from inversight.data import to_pil
from inversight.embeddings.lpips import Lpips, Undrawn, random_backbone

SIZE, SMALL_SIZE, TINY_SIZE = 256, 128, 64


def pictures(n: int, seed: int, size: int) -> Tensor:
    """Return smooth random colour images (n, 3, size, size) in [0, 1]."""
    coarse = torch.rand(n, 3, 24, 24, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


def layers(backbone: dict[str, Tensor]) -> nn.Sequential:
    """Return VGG16's convolutions as LPIPS uses them."""
    import torchvision

    with Undrawn():
        network = torchvision.models.vgg16().features[:30]
    network.load_state_dict({k.removeprefix("features."): v for k, v in backbone.items()})
    return network.eval().requires_grad_(False)


def fused(network: nn.Sequential, x: Tensor) -> Tensor:
    """Compute convolution and activation in one call of oneDNN."""
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            x = torch.ops.mkldnn._convolution_pointwise(
                x, layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, 1,
                "relu", [], "",
            )  # fmt: skip
        elif isinstance(layer, nn.MaxPool2d):
            x = layer(x)
    return x


def distances(embedding: Lpips, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return all pairwise distances (N, N) in float64, from features computed with ``dtype``."""
    blocks = []
    for image in images:
        context = (
            torch.autocast("cpu", dtype=dtype)
            if dtype != torch.float32
            else contextlib.nullcontext()
        )
        with torch.no_grad(), context:
            found = embedding(image[None])
        blocks.append(torch.cat([b.flatten().double() for b in found]))
    return torch.stack([torch.stack([(a - b).square().sum() for b in blocks]) for a in blocks])


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    n, rounds = (4, 1) if options.tiny else (8 if options.small else 24, 3)
    size = TINY_SIZE if options.tiny else SMALL_SIZE if options.small else SIZE
    backbone = random_backbone("vgg", torch.Generator().manual_seed(options.seed))
    plain, last = layers(backbone), layers(backbone).to(memory_format=torch.channels_last)
    embedding = Lpips("vgg", size=size, backbone=backbone)
    images = pictures(n, options.seed + 1, size)
    by_pixel = images.contiguous(memory_format=torch.channels_last)

    def batches(call: Callable[[Tensor], Any], x: Tensor, batch: int) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                for part in x.split(batch):
                    call(part)

        return run

    def bfloat16(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return last(x)

    encoded = []
    for image in images:
        buffer = io.BytesIO()
        to_pil((255 * image).round().to(torch.uint8)).save(buffer, format="PNG")
        encoded.append(buffer.getvalue())

    def decode() -> None:
        for data in encoded:
            Image.open(io.BytesIO(data)).load()

    settings: dict[str, Callable[[], None]] = {
        "default layout, one image at a time": batches(plain, images, 1),
        "default layout, batches of 8": batches(plain, images, 8),
        "channels-last, one image at a time (used)": batches(last, by_pixel, 1),
        "channels-last, batches of 8": batches(last, by_pixel, 8),
        "the same, convolution and ReLU fused": batches(lambda x: fused(last, x), by_pixel, 1),
        "bfloat16 autocast, channels-last": batches(bfloat16, by_pixel, 1),
        "decoding the PNG files alone": decode,
    }
    notes: dict[str, str] = {}
    if not options.small:  # compiling takes longer than everything else
        try:
            compiled = torch.compile(last)
            run = batches(compiled, by_pixel, 1)
            started = time.perf_counter()
            run()
            notes["torch.compile, channels-last"] = (
                f"compiling took {time.perf_counter() - started:.0f} s"
            )
            settings["torch.compile, channels-last"] = run
        except Exception as error:  # there is no C++ compiler that it can use
            notes["torch.compile, channels-last"] = f"not here: {type(error).__name__}"
    times: dict[str, list[float]] = {name: [] for name in settings}
    for run in settings.values():
        run()
    for _ in range(rounds):
        for name, run in settings.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) / n)

    few = images[: min(n, 6)]
    exact, rough = (distances(embedding, few, t) for t in (torch.float32, torch.bfloat16))
    off = ~torch.eye(len(few), dtype=torch.bool)
    error = float(((rough - exact).abs() / exact)[off].max())
    rows = [
        {
            "setting": name,
            "ms an image": 1000 * statistics.median(seconds),
            "relative error": error if name.startswith("bfloat16") else None,
            "note": notes.get(name, ""),
        }
        for name, seconds in times.items()
    ]
    used = next(row["ms an image"] for row in rows if "(used)" in row["setting"])
    figures = {f"{row['setting']}, over what is used": row["ms an image"] / used for row in rows}
    finish("settings tried for speed", figures, rows, options)


if __name__ == "__main__":
    main()
