"""Kill an audit at random moments, resume it, and compare its tables with those of an undisturbed run.

uv run python benchmarks/resume.py            ten kills of the digits audit, quick preset
uv run python benchmarks/resume.py --small    two kills of a short audit
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import tempfile
import time
from contextlib import nullcontext
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import inversight.pipeline.audit  # noqa: F401  # once for all processes
from common import finish, parser
from inversight.cli import main
from inversight.core.threads import usable_threads
from inversight.pipeline.estimate import Estimate

TABLES = ("metrics.json", "samples.parquet", "holdout.parquet", "exposure.parquet")
SMALL = {
    "prior.steps": 24,
    "prior.batch_size": 8,
    "prior.width": 4,
    "prior.checkpoint_seconds": 0.2,
    "adaptation.steps": 6,
    "target_training.epochs": 5,
    "target_training.width": 4,
    "evaluator_training.epochs": 5,
    "evaluator_training.width": 4,
    "public_training.epochs": 3,
    "public_training.width": 4,
    "shadows": 4,
    "workers": 1,
}


def hashes(run: Path) -> dict[str, str]:
    """Return the SHA-256 of each table, and of all reconstructions together."""
    found = {t: hashlib.sha256((run / t).read_bytes()).hexdigest()[:16] for t in TABLES}
    pictures = sorted((run / "reconstructions").rglob("*.png"))
    together = b"".join(p.read_bytes() for p in pictures)
    return {**found, "reconstructions": hashlib.sha256(together).hexdigest()[:16]}


def command(*arguments: str) -> None:
    """Run the command line without a word."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    main(list(arguments))


def started(*arguments: str) -> BaseProcess:
    """Return a process of its own, which starts with PyTorch loaded, that runs the command line."""
    process = get_context("fork").Process(target=command, args=arguments)
    process.start()
    return process


def run_whole(*arguments: str) -> None:
    process = started(*arguments)
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"inversight {' '.join(arguments)}: exit code {process.exitcode}")


def benchmark() -> None:
    options = parser(__doc__ or "").parse_args()
    kills = 1 if options.tiny else 2 if options.small else 10
    sets = (
        [f"{k}={v}" for k, v in SMALL.items()] if options.small else ["prior.checkpoint_seconds=5"]
    )
    # Runs that are to have the same bits may not choose their numbers of threads each by itself.
    settings = ["audit", "--seed", str(options.seed), "--threads", str(usable_threads())]
    for text in sets:
        settings += ["--set", text]
    if options.small:
        attack = "[{class: plug-and-play, pool: 400, candidates: 8, keep: 4, steps: 8, crops: 4}]"
        settings += ["--set", f"attack={attack}"]
    rng = random.Random(options.seed)
    rows: list[dict[str, Any]] = []
    no_trials = patch("inversight.pipeline.audit.estimate", lambda _: Estimate({}, 0, 0))
    with tempfile.TemporaryDirectory() as temporary, no_trials if options.tiny else nullcontext():
        whole = Path(temporary) / "whole"
        begun = time.monotonic()
        run_whole(*settings, "--out", str(whole))
        took = time.monotonic() - begun
        expected = hashes(whole)
        for kill in range(kills):
            run = Path(temporary) / f"killed-{kill}"
            begun = time.monotonic()
            process = started(*settings, "--out", str(run))
            while not (run / "run.json").is_file() and process.is_alive():
                time.sleep(0.05)
            ready = time.monotonic() - begun
            moment = rng.uniform(0.02, 0.95) * max(0.5, took - ready)
            time.sleep(moment)
            process.kill()
            process.join()
            done = [s["name"] for s in json.loads((run / "run.json").read_text())["stages"]]
            run_whole("audit", "--resume", str(run))
            rows.append(
                {
                    "killed_after_s": round(ready + moment, 1),
                    "last_stage_done": done[-1] if done else "none",
                    "same_tables": hashes(run) == expected,
                    **hashes(run),
                }
            )
            print(rows[-1], flush=True)
    same = sum(row["same_tables"] for row in rows)
    finish(
        f"SIGKILL at {kills} random moments, then --resume",
        {"same_tables": f"{same} of {kills}", "undisturbed": expected, "seconds": round(took, 1)},
        rows,
        options,
    )
    if same < kills:
        sys.exit(1)


if __name__ == "__main__":
    benchmark()
