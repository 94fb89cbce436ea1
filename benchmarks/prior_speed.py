"""How much faster is the prior's training than that of another version, and is the prior as good?

uv run python benchmarks/prior_speed.py                       digits and faces against c109938~1
uv run python benchmarks/prior_speed.py --before HEAD~1       against another commit
uv run python benchmarks/prior_speed.py --set new_latents=true --before HEAD     what a setting does

Both versions train on the same public images with the same seeds, each with its preset `quick` in a process
of its own with one thread; the order alternates. Time is processor time of the training alone. Quality is the
Frechet distance of 2,000 images (features of a classifier trained on the public images) from the public
images.

before_over_after   how many times faster
frechet_change      mean over seeds of the distance after less before, with half a 95 % interval
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import finish, interval, listed, numbers, parser
from inversight.core.console import Quiet
from inversight.core.imaging import to_float
from inversight.data import ImageSet, load_digits, load_images
from inversight.embeddings import named_embedding
from inversight.pipeline.context import Context
from inversight.pipeline.prior import FrechetToPublic
from inversight.pipeline.train import public_network
from inversight.settings.presets import stage_budgets

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = 2000
BEFORE: dict[str, dict[str, Any]] = {
    "digits": {"steps": 1500, "batch_size": 32, "learning_rate": 2e-3},
    "faces-32": {"steps": 2000, "batch_size": 32, "learning_rate": 2e-3},
}
"""The preset `quick` for each data set, as it was at first."""
TRAIN = """
import json, sys, time
import numpy as np, torch
from inversight.core.seeding import generator
from inversight.priors.training import train_prior
from inversight.settings import PriorTraining
torch.set_num_threads(1)
given, seed, out = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
public = torch.from_numpy(np.load(sys.argv[4]))
train_prior(public, training=PriorTraining(**{**given, "steps": 2}), rng=generator(seed))
started = time.process_time()
prior = train_prior(public, training=PriorTraining(**given), rng=generator(seed, "prior"))
seconds = time.process_time() - started
w = prior.sample(int(sys.argv[5]), rng=generator(seed, "samples"))
with torch.no_grad():
    images = torch.cat([prior(part) for part in w.split(100)])
np.save(out, (images * 255).round().to(torch.uint8).numpy())
print(json.dumps(seconds))
"""
"""Trains and draws in the process of a version; what it uses is the same in all of them."""


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--before", default="c109938~1", help="commit to compare with")
    arguments.add_argument("--datasets", default=",".join(BEFORE), type=listed)
    arguments.add_argument("--seeds", default="0-4", type=numbers)
    arguments.add_argument("--part", type=float, default=1.0, help="share of the steps")
    arguments.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments.add_argument(
        "--set", action="append", default=[], metavar="NAME=JSON", help="setting of `before` alone"
    )
    options = arguments.parse_args()
    if options.small:
        options.datasets, options.seeds, options.part = ["digits"], [0, 1], min(options.part, 0.08)
    changed = {k: json.loads(v) for k, v in (one.split("=", 1) for one in options.set)}
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as folder:
        versions = {"before": _extracted(options.before, Path(folder)), "after": ROOT / "src"}
        for name in options.datasets:
            found = _compare(name, versions, changed, options, Path(folder))
            rows += found
            figures |= _figures(name, found)
    finish(f"prior's training, {options.before} and now", figures, rows, options)


def _extracted(commit: str, folder: Path) -> Path:
    """Write the sources of ``commit`` under ``folder``; return the folder of the package."""
    packed = subprocess.run(
        ["git", "archive", commit, "src"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "src"


def _compare(
    name: str, versions: dict[str, Path], changed: dict[str, Any], options: Any, folder: Path
) -> list[dict[str, Any]]:
    public = _public(name, options.data)
    context = Context(0, torch.device("cpu"), Quiet())
    network = public_network(public, None, context)
    embedding = named_embedding(
        "public", use="features", role="features", size=public.size, public_network=network
    )
    distance = FrechetToPublic(public.images, embedding, torch.device("cpu"))
    np.save(folder / "public.npy", public.images.numpy())
    now = stage_budgets("quick", digits=name == "digits")["prior"]
    trained = {"before": BEFORE[name] | changed, "after": now}
    rows = []
    for seed in options.seeds:
        row: dict[str, Any] = {"data": name, "seed": seed}
        for version in sorted(versions, reverse=seed % 2 == 0):
            given = {**trained[version], "mirror": name != "digits"}
            given["steps"] = row[f"steps_{version}"] = round(given["steps"] * options.part)
            out = folder / "samples.npy"
            command = [
                sys.executable, "-c", TRAIN, json.dumps(given), str(seed), str(out),
                str(folder / "public.npy"), str(SAMPLES),
            ]  # fmt: skip
            own = {"PYTHONPATH": str(versions[version]), "OMP_NUM_THREADS": "1"}
            ended = subprocess.run(
                command, env=os.environ | own, stdout=subprocess.PIPE, text=True, check=True
            )
            row[f"s_{version}"] = json.loads(ended.stdout.splitlines()[-1])
            images = torch.from_numpy(np.load(out))
            row[f"frechet_{version}"] = distance(iter(to_float(images).split(200)))
        pairs = [f"{what}_{v}" for what in ("steps", "s", "frechet") for v in ("before", "after")]
        rows.append({column: row[column] for column in ("data", "seed", *pairs)})
        print(rows[-1], flush=True)
    return rows


def _public(name: str, data: Path) -> ImageSet:
    if name == "digits":
        return load_digits(seed=0).public
    return load_images(data / "olivetti" / "public", role="--data", size=32)


def _figures(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    before, after = (sum(row[f"s_{version}"] for row in rows) for version in ("before", "after"))
    change, half = interval([row["frechet_after"] - row["frechet_before"] for row in rows])
    return {
        f"{name}: before_over_after": before / after,
        f"{name}: frechet_change": change,
        f"{name}: frechet_change_half": half,
    }


if __name__ == "__main__":
    main()
