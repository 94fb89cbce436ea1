"""Time of DDCS under LPIPS (VGG16, 256 x 256): the published loop, ours, and the network alone.

uv run python benchmarks/scoring.py            46 private images and 50 reconstructions in a class
uv run python benchmarks/scoring.py --small    the same at 160 x 160, timed once

loop_over_ours             a loop over reconstructions over ours, the network included in both
distances_loop_over_ours   the same without the network
ours_over_forward          all of ours over the float32 network alone in its fastest setting
worst_relative_error       of a distance, against the authors' package in float64

Weights are random (He normal); the published ones take the same time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lpips
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import finish, parser
from inversight.embeddings import Workspace, image_pairs
from inversight.embeddings.distances import exact_products
from inversight.embeddings.lpips import Lpips, Undrawn, random_backbone
from inversight.scores import DDCS, Assigner, ddcs_of
from inversight.scores.bootstrap import interval_of_means

SIZE, SMALL_SIZE, TINY_SIZE = 256, 160, 64
MEMORY = 2 << 30


def pictures(n: int, seed: int, size: int) -> Tensor:
    """Return smooth random colour images, uint8 (n, 3, size, size)."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 24, 24, generator=rng)
    fine = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return (255 * fine).round().to(torch.uint8)


class Plain:
    """LPIPS as the authors' package computes it, layer by layer, in PyTorch's default layout."""

    def __init__(self, backbone: dict[str, Tensor], device: torch.device) -> None:
        with Undrawn():
            self.model = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
        for name, value in self.model.net.named_parameters():
            value.data.copy_(backbone[f"features.{name.partition('.')[2]}"])
        self.model.requires_grad_(False).to(device)
        self.device = device

    def features(self, images: Tensor) -> list[Tensor]:
        x = self.model.scaling_layer(images.to(self.device).float() / 127.5 - 1.0)
        return [lpips.normalize_tensor(f) for f in self.model.net(x)]

    def distances(self, private: list[Tensor], one: list[Tensor]) -> Tensor:
        """Return one image's distances to all private ones, element by element."""
        total = torch.zeros(len(private[0]), device=self.device)
        for ours, theirs, linear in zip(private, one, self.model.lins, strict=True):
            total += linear((ours - theirs) ** 2).mean((1, 2, 3))
        return total

    @torch.no_grad()
    def score(self, private: Tensor, reconstructions: Tensor) -> tuple[float, Tensor]:
        """Return DDCS best of one class, and all distances (M, N)."""
        parts = [self.features(x) for x in private.split(8)]
        held = [torch.cat(layer) for layer in zip(*parts, strict=True)]
        rows = torch.stack([self.distances(held, self.features(x[None])) for x in reconstructions])
        return best(rows), rows


def best(rows: Tensor) -> float:
    """Return DDCS best from distances (M, N), one reconstruction after another."""
    smallest: dict[int, float] = {}
    for row in rows.tolist():
        owner = min(range(len(row)), key=row.__getitem__)
        smallest[owner] = min(row[owner], smallest.get(owner, row[owner]))
    return sum(1 / max(d, 1e-6) for d in smallest.values()) / rows.shape[1]


@dataclass
class Cached:
    """A staged embedding with precomputed maps: each image has its row number in its first pixel."""

    network: Lpips
    maps: list[Tensor]
    name: str = "cached"

    def batch_size(self, device: torch.device) -> int:
        return self.network.batch_size(device)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def enter(self, images: Tensor) -> Tensor:
        return images

    def advance(self, stage: int, state: Tensor) -> tuple[Tensor | None, Tensor]:
        rows = (state[:, 0, 0, 0] * 255).round().long().tolist()
        more = state if stage + 1 < len(self.maps) else None
        part = self.maps[stage][rows[0] : rows[-1] + 1]
        return more, part

    def refer(self, stage: int, maps: Tensor, reference: Tensor) -> None:
        self.network.refer(stage, maps, reference)

    def write(self, stage: int, maps: Tensor, reference: Tensor, out: Tensor) -> None:
        self.network.write(stage, maps, reference, out)


class Stopwatch:
    """Time several functions alternately, print each time at once, and keep the median of each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: dict[str, list[float]] = {}

    def time(self, name: str, run: Callable[[], object], share: float = 1.0) -> None:
        """Time ``run``, which does ``share`` of the work."""
        self._wait()
        started = time.perf_counter()
        run()
        self._wait()
        taken = (time.perf_counter() - started) / share
        self.times.setdefault(name, []).append(taken)
        print(f"{name}: {taken:.4g} s", flush=True)

    def median(self, name: str) -> float:
        return statistics.median(self.times[name])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def fastest_forward(
    network: nn.Module, images: Tensor, device: torch.device, *, options: argparse.Namespace
) -> tuple[str, Callable[[], object]]:
    """Return the fastest setting of the network alone, found by trying on some of the images.

    Tries layouts and batch sizes, ours (channels-last) among them.
    """
    batches = (1, 2, 4, 8) if device.type == "cpu" else (8, 16, 32, 48)
    few = 8 if options.small else 16
    if options.tiny:
        batches = batches[:1]
    layouts = {"default layout": torch.contiguous_format, "channels-last": torch.channels_last}

    def runner(layout: torch.memory_format, batch: int, count: int) -> Any:
        def run() -> None:
            with exact_products():
                for part in images[:count].split(batch):
                    network(part.contiguous(memory_format=layout))

        return run

    tries = []
    for name, layout in layouts.items():
        network.to(memory_format=layout)
        for batch in batches:
            run = runner(layout, batch, few)
            watch = Stopwatch(device)
            run()
            watch.time("forward", run)
            tries.append((watch.median("forward"), f"{name}, batch {batch}", layout, batch))
    _, setting, layout, batch = min(tries, key=lambda t: t[0])
    network.to(memory_format=layout)
    return setting, runner(layout, batch, len(images))


def time_distances(
    network: Lpips,
    plain: Plain,
    images: Tensor,
    n: int,
    ours: Callable[..., object],
    watch: Stopwatch,
    repeats: int,
    step: int = 1,
) -> None:
    """Time everything but the network, from given feature maps; the first ``n`` images are private.

    ``step``: the loop goes over one in so many reconstructions, and its time is scaled.
    """
    maps: list[Tensor] = []
    states = [network.enter(image[None]) for image in images]
    while states:
        found = [network.advance(len(maps), state) for state in states]
        whole = torch.cat([f for _, f in found])
        maps.append(whole.contiguous(memory_format=torch.channels_last))
        states = [state for state, _ in found if state is not None]
    rows = torch.arange(len(images), dtype=torch.uint8).view(-1, 1, 1, 1)
    cached = Cached(network, maps)
    # The loop normalises private features once, in its own layout.
    held = [lpips.normalize_tensor(f[:n].contiguous()) for f in maps]
    passing = [f[n:].contiguous() for f in maps]

    def loop() -> None:
        for j in range(0, len(images) - n, step):
            plain.distances(held, [lpips.normalize_tensor(f[j : j + 1]) for f in passing])

    ours(cached, rows[:n], rows[n:])
    for _ in range(repeats):
        watch.time("distances", lambda: ours(cached, rows[:n], rows[n:]))
    watch.time("loop distances", loop, share=1 / step)


def worst_error(network: Lpips, backbone: dict[str, Tensor], pairs: int) -> list[dict[str, Any]]:
    """Return relative errors of our distances against the package in float64, by distance of the pair."""
    left = pictures(pairs, 11, network.size).float() / 255
    noise = torch.randn(left.shape, generator=torch.Generator().manual_seed(12))
    model = Plain(backbone, torch.device("cpu")).model.double()
    rows = []
    for step in (0.0015, 0.005, 0.05, 0.3, None):
        right = (
            pictures(pairs, 13, network.size).float() / 255 if step is None else left + step * noise
        )
        right = right.clamp(0, 1)
        metric = DDCS(left, torch.arange(pairs), embedding=network, bootstrap=0)
        metric.update(right, torch.arange(pairs))
        found = metric.compute().per_sample["nearest_distance"]
        with torch.no_grad():
            expected = torch.cat(
                [
                    model(2 * a[None].double() - 1, 2 * b[None].double() - 1).flatten()
                    for a, b in zip(left, right, strict=True)
                ]
            )
        error = float(((found - expected).abs() / expected).max())
        rows.append(
            {
                "what": f"error at d = {float(expected.mean()):.2g}",
                "seconds": None,
                "a reconstruction (ms)": None,
                "relative error": error,
            }
        )
    return rows


def bootstrap() -> None:
    """Compute the intervals of three summaries of 10,000 images in 1,000 classes."""
    values = torch.rand(10_000, 3, generator=torch.Generator().manual_seed(0))
    interval_of_means(
        values, torch.full((1000,), 10), resamples=1000, rng=torch.Generator().manual_seed(0)
    )


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = arguments.parse_args()
    device = torch.device(options.device)
    n, m = (5, 6) if options.tiny else (46, 50)
    repeats = 1 if options.small else 3
    size = TINY_SIZE if options.tiny else SMALL_SIZE if options.small else SIZE
    backbone = random_backbone("vgg", torch.Generator().manual_seed(options.seed))
    network, plain = Lpips("vgg", size=size, backbone=backbone), Plain(backbone, device)
    private = pictures(n, options.seed + 1, size)
    others = pictures(m, options.seed + 2, size)
    work = Workspace(device)

    def ours(embedding: Any = network, left: Tensor = private, right: Tensor = others) -> float:
        assigner = Assigner([f"p{i:03d}" for i in range(n)], [f"r{i:03d}" for i in range(m)])
        for tile in image_pairs(embedding, left, right, memory=MEMORY, workspace=work):
            assigner.see(tile.left, tile.right, tile.distances)
        found = ddcs_of(
            assigner.result(),
            labels=torch.zeros(n, dtype=torch.int64),
            ids=[f"p{i:03d}" for i in range(n)],
            reconstruction_ids=[f"r{i:03d}" for i in range(m)],
        ).summary["ddcs_best"]
        return float(found.value or 0.0)

    with exact_products():
        both = torch.cat([private, others]).to(device).float() / 255
        x = plain.model.scaling_layer(2 * both - 1)
        bare = Plain(backbone, device).model.net
        setting, forward = fastest_forward(bare, x, device, options=options)
        # The same on both sides: network loaded, ours warmed up, then alternately.
        watch = Stopwatch(device)
        found = ours()
        for _ in range(repeats):
            watch.time("forward", forward)
            watch.time("ours", ours)

        step = 5 if options.small and not options.tiny else 1
        time_distances(network, plain, both, n, ours, watch, repeats, step)
        scores = []
        for _ in range(1 if device.type == "cpu" else repeats):
            watch.time("loop", lambda: scores.append(plain.score(private, others)[0]))
            watch.time("ours again", ours)

    table = [
        {
            "what": name,
            "seconds": watch.median(key),
            "a reconstruction (ms)": 1000 * watch.median(key) / m,
            "relative error": None,
        }
        for name, key in (
            ("loop over reconstructions", "loop"),
            ("ours", "ours"),
            ("bare network, " + setting, "forward"),
            ("loop, without the network", "loop distances"),
            ("ours, without the network", "distances"),
        )
    ]
    errors = worst_error(network, backbone, 1 if options.small else 4)
    watch.time("bootstrap", bootstrap)
    figures = {
        "loop_over_ours": watch.median("loop") / watch.median("ours again"),
        "distances_loop_over_ours": watch.median("loop distances") / watch.median("distances"),
        "ours_over_forward": watch.median("ours") / watch.median("forward"),
        "ddcs_best_relative_difference": abs(found / scores[0] - 1),
        "bootstrap_seconds_10000_images": watch.median("bootstrap"),
        "worst_relative_error": max(row["relative error"] for row in errors),
    }
    finish(
        f"DDCS, LPIPS VGG16 at {size} x {size}, {n} private images and {m} reconstructions, {device}",
        figures,
        table + errors,
        options,
    )


if __name__ == "__main__":
    main()
