"""Records samples during a training: a grid of images, and their distance from the public images.

Recording uses a generator of its own and does not change the training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.core.imaging import to_uint8
from inversight.core.run import atomic_file, write_json
from inversight.core.seeding import generator
from inversight.data import to_pil

Draw = Callable[[int, torch.Generator], Iterator[Tensor]]
"""Number n and generator -> n images in [0, 1], in batches (B, C, S, S)."""
Distance = Callable[[Iterator[Tensor]], float]
"""Batches of images -> distance of the set from the public images."""

GRIDS = "samples"
ROWS = "progress.json"
_PIXELS = 2048
"""Maximum height and width of a grid, in pixels."""


@dataclass(frozen=True)
class SampleMonitor:
    """Writes ``folder/samples/images-000123456.png`` and adds a row to ``folder/progress.json``.

    The number counts the real images seen in the training. All grids show the same latents. ``distance``
    is computed on 1/32 as many samples as images are seen between two records, which bounds its cost, but
    on at least ``fewest`` and at most ``most``.
    """

    folder: Path
    distance: Distance | None = None
    fewest: int = 128
    most: int = 2000

    def record(
        self, draw: Draw, *, images: int, every: int, facts: dict[str, float]
    ) -> float | None:
        """Record samples after ``images`` images, and return the distance, if there is one.

        ``facts`` are added to the row, without values that are not finite.
        """
        self._write_grid(draw, images)
        row: dict[str, Any] = {"images": images, **facts}
        value: float | None = None
        if self.distance is not None:
            count = min(self.most, max(self.fewest, every // 32))
            value = self.distance(draw(count, generator(0, "watch", "distance")))
            row |= {"frechet": value, "frechet_images": count}
        self._add({k: v for k, v in row.items() if math.isfinite(v)})
        return value

    def _write_grid(self, draw: Draw, images: int) -> None:
        first = next(draw(1, generator(0, "watch", "grid")))
        side = max(2, min(8, _PIXELS // first.shape[-1]))
        shown = torch.cat([x.cpu() for x in draw(side**2, generator(0, "watch", "grid"))])
        path = self.folder / GRIDS / f"images-{images:09d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as partial:
            to_pil(to_uint8(grid_of(shown, side))).save(partial, format="PNG")

    def _add(self, row: dict[str, Any]) -> None:
        """Append ``row``, and drop rows of steps that are repeated after an interruption."""
        path = self.folder / ROWS
        rows = json.loads(path.read_text()) if path.is_file() else []
        rows = [r for r in rows if r["images"] < row["images"]]
        write_json(path, [*rows, row])


def grid_of(images: Tensor, side: int) -> Tensor:
    """Return side^2 images (side^2, C, S, S) as one grid (C, H, H), with a white line around each.

    torchvision's function takes seconds to import.
    """
    framed = F.pad(images, (1, 1, 1, 1), value=1.0)
    rows: Tensor = framed.unflatten(0, (side, side)).permute(2, 0, 3, 1, 4)
    return rows.flatten(3, 4).flatten(1, 2)
