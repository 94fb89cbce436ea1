"""Memory and time of scoring against the number of images, with a projection for LPIPS.

uv run python benchmarks/scoring_memory.py                 up to 100,000 + 100,000 in 1,000 classes
uv run python benchmarks/scoring_memory.py --small         1,000 + 1,000
uv run python benchmarks/scoring_memory.py --plot FILE     draw it

Every row is a process of its own that scores 32 x 32 colour images, half of them private, a hundred of each
side in a class, under --memory 2 GiB. *peak* is the largest resident memory of the process, most of it PyTorch
and the images. LPIPS (VGG16 at 256 x 256) is timed on one class and projected.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from common import finish, in_own_process, parser, pyplot, save_figure
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.embeddings import PooledEmbedding
from inversight.embeddings.pixel import Pixel
from inversight.models.networks import build_classifier
from inversight.models.target import target_of
from inversight.pipeline.evaluation import evaluate

MEMORY = 2 << 30
A_CLASS = 100


def images(n: int, seed: int, size: int = 32) -> ImageSet:
    """Return n random images in classes of a hundred."""
    labels = torch.arange(n) // A_CLASS
    classes = tuple(f"{c:05d}" for c in range(int(labels[-1]) + 1))
    pixels = torch.randint(0, 256, (n, 3, size, size), generator=generator(seed), dtype=torch.uint8)
    ids = tuple(f"{classes[y]}/{i:06d}.png" for i, y in enumerate(labels.tolist()))
    return ImageSet(pixels, labels, ids, classes, ids)


def one(kind: str, n: int) -> dict[str, Any]:
    """Score n private images against n reconstructions; return this process's time and peak memory."""
    private, reconstructions = images(n, 0), images(n, 1)
    saved = build_classifier(
        "resnet", classes=("a", "b"), image_shape=(3, 32, 32), width=16, mean=[0.5] * 3,
        std=[0.25] * 3, rng=generator(2),
    )  # fmt: skip
    pooled = PooledEmbedding("classifier", target_of(saved, "untrained"))
    distance: Any = Pixel((32, 32)) if kind == "pixel" else pooled
    if kind == "lpips-vgg":
        from inversight.embeddings.lpips import Lpips, random_backbone  # takes seconds

        distance = Lpips("vgg", backbone=random_backbone("vgg", generator(3)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    evaluate(
        private, {"all": reconstructions}, distance=distance, features=pooled, evaluator=None, holdout=None,
        memory=MEMORY, seed=0,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "distance": kind,
        "images": 2 * n,
        "classes": len(private.classes),
        "seconds": seconds,
        "ms an image": 1000 * seconds / (2 * n),
        "before (GiB)": before / 2**20,
        "peak (GiB)": peak / 2**20,
        "note": "",
    }


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for kind in ("pixel", "classifier", "lpips-vgg"):
        mine = [r for r in rows if r["distance"] == kind]
        x = [r["images"] for r in mine]
        style = "o--" if kind == "lpips-vgg" else "o-"
        left.plot(x, [r["seconds"] for r in mine], style, label=kind)
        measured = [r for r in mine if r["peak (GiB)"] is not None]
        right.plot(
            [r["images"] for r in measured], [r["peak (GiB)"] for r in measured], style, label=kind
        )
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xlabel("images, private and reconstructions together")
        axis.spines[["top", "right"]].set_visible(False)
    left.set_yscale("log")
    left.set_ylabel("seconds")
    left.set_title("time (dashed: LPIPS, projected from one class)", fontsize=10)
    right.set_ylabel("GiB")
    right.set_ylim(bottom=0)
    right.set_title("peak memory of the process", fontsize=10)
    left.legend(frameon=False)
    save_figure(figure, file)


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--plot", type=Path, help="draw the growth to this file")
    options = arguments.parse_args()
    sizes = (200,) if options.tiny else (1000,) if options.small else (1000, 10_000, 100_000)
    lpips = 2 if options.tiny else 20 if options.small else 100
    rows = []
    runs = [(kind, n) for kind in ("pixel", "classifier") for n in sizes]
    for kind, n in [*runs, ("lpips-vgg", lpips)]:
        rows.append(in_own_process(one, kind, n))
        print(rows[-1], file=sys.stderr, flush=True)
    last = rows[-1]
    for n in sizes:
        rows.append(
            {
                **last,
                "images": 2 * n,
                "classes": n // A_CLASS,
                "seconds": last["ms an image"] * 2 * n / 1000,
                "peak (GiB)": None,
                "note": "projected",
            }
        )
    largest = {r["distance"]: r for r in rows if r["peak (GiB)"] is not None}
    figures = {
        **{f"{kind}_peak_gib": row["peak (GiB)"] for kind, row in largest.items()},
        **{f"{kind}_ms_an_image": row["ms an image"] for kind, row in largest.items()},
        "lpips_hours_at_the_largest": rows[-1]["seconds"] / 3600,
    }
    if options.plot:
        draw(rows, options.plot)
    finish("scoring against the number of images, --memory 2 GiB", figures, rows, options)


if __name__ == "__main__":
    main()
