"""Is the split of the faces into private and holdout images exchangeable?

uv run python benchmarks/faces_split.py

Without any model: the mean log pixel distance (32x32) between images of a person on the same side of the
split, less that between images on different sides. Below 0: a side's images are alike, so that a holdout
image is further from reconstructions of private images without a leak. The p-value is that of redrawing
the split within each person (one-sided).

folders    the folders' split: shots 1 to 5 are private, 6 to 10 holdout
drawn      splits that benchmarks/study_data.py draws by seed
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import finish, parser
from inversight.core.seeding import generator
from inversight.data import load_images
from study_data import faces

REDRAWS = 10_000


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--data", type=Path, default=Path("../shared/data"))
    options = arguments.parse_args()
    given = options.data / "olivetti"
    redraws = REDRAWS // 10 if options.small else REDRAWS
    rows = [{"split": "folders", **_difference(given, redraws)}]
    with tempfile.TemporaryDirectory() as work:
        for seed in range(2 if options.small else 5):
            drawn = faces(seed, given, Path(work))
            rows.append({"split": f"drawn, seed {seed}", **_difference(drawn, redraws)})
    figures = {f"{name}_of_the_folders": rows[0][name] for name in ("difference", "p_value")}
    finish("log distance within sides less that between sides", figures, rows, options)


def _difference(folder: Path, redraws: int) -> dict[str, Any]:
    """Return the mean difference over persons and its p-value."""
    parts = [load_images(folder / part, role="--data", size=32) for part in ("private", "holdout")]
    pixels = torch.cat([part.images.flatten(1).float() / 255 for part in parts])
    labels = torch.cat([part.labels for part in parts])
    private = torch.arange(len(labels)) < len(parts[0])
    distances, sides = [], []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        distances.append(torch.cdist(pixels[rows], pixels[rows]).square().log().fill_diagonal_(0.0))
        sides.append(private[rows])
    logs, side = torch.stack(distances), torch.stack(sides)
    found = _within_less_between(logs, side[None])[0]
    rng = generator(0)
    order = torch.rand(redraws, *side.shape, generator=rng).argsort(2)
    redrawn = side.expand(redraws, -1, -1).gather(2, order)
    as_low = int((_within_less_between(logs, redrawn) <= found + 1e-12).sum())
    return {"difference": float(found), "p_value": (1 + as_low) / (1 + redraws)}


def _within_less_between(logs: Tensor, sides: Tensor) -> Tensor:
    """Return (R,) mean differences of log distances (P, n, n) for sides (R, P, n)."""
    same = (sides[:, :, :, None] == sides[:, :, None, :]).float()
    n = logs.shape[1]
    pairs = 1.0 - torch.eye(n)
    within = (logs * same * pairs).sum((1, 2, 3)) / (same * pairs).sum((1, 2, 3))
    between = (logs * (1.0 - same)).sum((1, 2, 3)) / (1.0 - same).sum((1, 2, 3))
    return within - between


if __name__ == "__main__":
    main()
