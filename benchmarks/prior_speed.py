"""How much faster is the prior's training than that of another version, and is the prior as good?

uv run python benchmarks/prior_speed.py                       digits and faces against c109938~1
uv run python benchmarks/prior_speed.py --before HEAD~1       against another commit
uv run python benchmarks/prior_speed.py --set new_latents=true --before HEAD     what a setting does
uv run python benchmarks/prior_speed.py --kept FOLDER         keeps each training, and goes on where it stopped

Both versions train on the same public images with the same seeds, each with its preset `quick` in a process
of its own with one thread; the order alternates. Time is processor time of the training alone. Quality is the
Frechet distance of 2,000 images (features of a classifier trained on the public images) from the public
images, at each fifth of a training: nothing in a training depends on its number of steps, so the prior at a
fifth is that of a training that ends there.

before_over_after    how many times faster
frechet_change       mean over seeds of the distance after less before, with half a 95 % interval
before_over_equal    how many times faster, if the training now ends at the first fifth from which on the
                     mean distance is higher than before by at most the standard error of the change
equal_steps          number of steps at this fifth
"""

from __future__ import annotations

import io
import json
import math
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import digest, finish, interval, is_current, keep, listed, numbers, parser
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
POINTS = 5
"""Times at which the quality is measured during a training."""
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
class Monitor:
    paused, seconds, samples = 0.0, [], []
    def record(self, draw, *, images, every, facts):
        started = time.process_time()
        if images:
            self.seconds.append(started - begun - self.paused)
            drawn = torch.cat(list(draw(int(sys.argv[5]), generator(seed, "samples"))))
            self.samples.append((drawn * 255).round().to(torch.uint8).numpy())
        self.paused += time.process_time() - started
monitor = Monitor()
begun = time.process_time()
train_prior(
    public, training=PriorTraining(**given), rng=generator(seed, "prior"), monitor=monitor
)
np.save(out, np.stack(monitor.samples))
print(json.dumps(monitor.seconds))
"""
"""Trains and draws in the process of a version; what it uses is the same in all of them."""


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--before", default="c109938~1", help="commit to compare with")
    arguments.add_argument("--datasets", default=",".join(BEFORE), type=listed)
    arguments.add_argument("--seeds", default="0-4", type=numbers)
    arguments.add_argument("--part", type=float, default=1.0, help="share of the steps")
    arguments.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments.add_argument("--kept", type=Path, help="folder of finished trainings")
    arguments.add_argument(
        "--set", action="append", default=[], metavar="NAME=JSON", help="setting of `before` alone"
    )
    options = arguments.parse_args()
    if options.small:
        options.datasets, options.seeds, options.part = ["digits"], [0, 1], min(options.part, 0.08)
    changed = {k: json.loads(v) for k, v in (one.split("=", 1) for one in options.set)}
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as folder:
        options.kept = options.kept or Path(folder) / "kept"
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
            given["steps"] = round(given["steps"] * options.part / POINTS) * POINTS
            given["watch_images"] = given["steps"] // POINTS * given.get("batch_size", 32)
            file = options.kept / f"{name}-{version}-{seed}.json"
            settings = digest([given, _code(versions[version])])
            if not is_current(file, settings):
                seconds, images = _train(given, seed, versions[version], folder)
                found = [distance(iter(to_float(one).split(200))) for one in images]
                facts = {"steps": given["steps"], "s": seconds, "frechet": found}
                keep(file, {"settings": settings, "given": given, **facts})
            facts = json.loads(file.read_text())
            row[f"steps_{version}"] = facts["steps"]
            for what in ("s", "frechet"):
                row[f"{what}_{version}"] = [round(value, 2) for value in facts[what]]
        pairs = [f"{what}_{v}" for what in ("steps", "s", "frechet") for v in ("before", "after")]
        rows.append({column: row[column] for column in ("data", "seed", *pairs)})
        print(rows[-1], flush=True)
    return rows


def _code(package: Path) -> list[str]:
    """Return the sources that a training depends on."""
    files = [*package.glob("inversight/priors/*.py"), package / "inversight/settings/stages.py"]
    return [file.read_text() for file in sorted(files)]


def _train(
    given: dict[str, Any], seed: int, package: Path, folder: Path
) -> tuple[list[float], torch.Tensor]:
    """Train with this version; return seconds and samples (points, N, C, S, S) at each point."""
    out = folder / "samples.npy"
    command = [
        sys.executable, "-c", TRAIN, json.dumps(given), str(seed), str(out),
        str(folder / "public.npy"), str(SAMPLES),
    ]  # fmt: skip
    own = {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, env=os.environ | own, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(ended.stdout.splitlines()[-1]), torch.from_numpy(np.load(out))


def _public(name: str, data: Path) -> ImageSet:
    if name == "digits":
        return load_digits(seed=0).public
    return load_images(data / "olivetti" / "public", role="--data", size=32)


def _figures(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    before = sum(row["s_before"][-1] for row in rows)
    after = [sum(row["s_after"][point] for row in rows) for point in range(POINTS)]
    changes = [
        [row["frechet_after"][point] - row["frechet_before"][-1] for row in rows]
        for point in range(POINTS)
    ]
    worse = [point for point in range(POINTS) if not _as_good(changes[point])]
    equal = worse[-1] + 1 if worse else 0
    found = equal < POINTS
    change, half = interval(changes[-1])
    return {
        f"{name}: before_over_after": before / after[-1],
        f"{name}: frechet_change": change,
        f"{name}: frechet_change_half": half,
        f"{name}: before_over_equal": before / after[equal] if found else None,
        f"{name}: equal_steps": rows[0]["steps_after"] // POINTS * (equal + 1) if found else None,
    }


def _as_good(changes: list[float]) -> bool:
    """Return whether distances are higher on average by at most the standard error."""
    error = statistics.stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else 0.0
    return statistics.mean(changes) <= error


if __name__ == "__main__":
    main()
