"""Time and memory of reading many images of each format.

uv run python benchmarks/reading.py                100,000 colour images of 64 x 64
uv run python benchmarks/reading.py --small        2,000

Each row is a process of its own that reads one format into an image set, mapped to a file where the images
have more than 256 MiB, then goes through all of them in batches of 256. *peak* is the largest resident memory
of the process while reading and *through* after the batches, pages of the mapped file included, which the
system takes back when memory is short; *before* is that of the imports alone.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from common import finish, in_own_process, parser
from inversight.data import load_images

SIDE, CLASSES = 64, 100


def pictures(count: int, seed: int) -> Iterator[Image.Image]:
    """Yield smooth pictures, each with noise, so that files have about the size of photographs."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
        smooth = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = smooth + rng.integers(-4, 5, smooth.shape, dtype=np.int16)
        yield Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write(folder: Path, count: int, seed: int) -> dict[str, Path]:
    """Write the same images as PNG files, as one npz and as Parquet; return where they are."""
    paths = {"PNG files": folder / "png", "Parquet": folder / "x.parquet", "npz": folder / "x.npz"}
    pixels = np.lib.format.open_memmap(
        folder / "x.npy", "w+", dtype=np.uint8, shape=(count, SIDE, SIDE, 3)
    )
    for label in range(CLASSES):
        (paths["PNG files"] / f"{label:03d}").mkdir(parents=True)
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ]
    )
    rows: list[dict[str, Any]] = []
    with pq.ParquetWriter(paths["Parquet"], schema) as table:
        for i, picture in enumerate(pictures(count, seed)):
            buffer = io.BytesIO()
            picture.save(buffer, "PNG", compress_level=1)
            (paths["PNG files"] / f"{i % CLASSES:03d}" / f"{i:06d}.png").write_bytes(
                buffer.getvalue()
            )
            rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": i % CLASSES})
            pixels[i] = np.asarray(picture)
            if len(rows) == 1000 or i == count - 1:
                table.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
    np.savez_compressed(paths["npz"], images=pixels, labels=np.arange(count) % CLASSES)
    (folder / "x.npy").unlink()
    return paths


def peak() -> float:
    """Return the largest resident memory of this process so far, in GiB (Linux).

    Unlike ``ru_maxrss`` this does not begin with the memory of the process that started it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    raise SystemExit("needs /proc/self/status")


def one(path: Path) -> dict[str, Any]:
    """Read one format; return this process's time and peak memory."""
    before, started = peak(), time.perf_counter()
    found = load_images(path, role="--private")
    seconds, reading = time.perf_counter() - started, peak()
    total = sum(int(part.sum()) for part in found.images.split(256))
    return {
        "images": len(found),
        "seconds": seconds,
        "images a second": len(found) / seconds,
        "decoded (GiB)": found.images.nbytes / 2**30,
        "before (GiB)": before,
        "peak (GiB)": reading,
        "through (GiB)": peak(),
        "sum": total,
    }


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--images", type=int, help="number of images")
    options = arguments.parse_args()
    usual = 200 if options.tiny else 2000 if options.small else 100_000
    count = options.images or usual
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        # Written in another process too, so that the memory this takes is not in that of the rows.
        for name, path in in_own_process(write, Path(folder), count, options.seed).items():
            rows.append({"format": name} | in_own_process(one, path))
    if len({row.pop("sum") for row in rows}) > 1:
        raise SystemExit("the formats gave different pixels")
    figures = {f"{row['format']}: seconds": round(row["seconds"], 1) for row in rows}
    figures |= {f"{row['format']}: peak GiB": round(row["peak (GiB)"], 2) for row in rows}
    finish(f"Reading {count:,} images of {SIDE}x{SIDE}", figures, rows, options)


if __name__ == "__main__":
    main()
