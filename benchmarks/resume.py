"""Kill an audit at random moments, resume it, and compare its tables with those of an undisturbed run.

uv run python benchmarks/resume.py            ten kills of the digits audit, quick preset
uv run python benchmarks/resume.py --small    one kill of a very short audit
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import finish, parser

TABLES = ("metrics.json", "samples.parquet", "holdout.parquet", "exposure.parquet")
SMALL = {
    "prior.steps": 24,
    "prior.checkpoint_seconds": 0.2,
    "adaptation.steps": 6,
    "target_training.epochs": 5,
    "evaluator_training.epochs": 5,
    "public_training.epochs": 3,
    "shadows": 4,
    "workers": 1,
}


def hashes(run: Path) -> dict[str, str]:
    """Return the SHA-256 of each table, and of all reconstructions together."""
    found = {t: hashlib.sha256((run / t).read_bytes()).hexdigest()[:16] for t in TABLES}
    pictures = sorted((run / "reconstructions").rglob("*.png"))
    together = b"".join(p.read_bytes() for p in pictures)
    return {**found, "reconstructions": hashlib.sha256(together).hexdigest()[:16]}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from inversight.cli import main; main()", *arguments]


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    kills = 1 if options.small else 10
    sets = (
        [f"{k}={v}" for k, v in SMALL.items()] if options.small else ["prior.checkpoint_seconds=5"]
    )
    settings = ["audit", "--seed", str(options.seed)]
    for text in sets:
        settings += ["--set", text]
    if options.small:
        attack = "[{class: plug-and-play, pool: 400, candidates: 8, keep: 4, steps: 8, crops: 4}]"
        settings += ["--set", f"attack={attack}"]
    rng = random.Random(options.seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        started = time.monotonic()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(command(*settings, "--out", str(whole)), check=True, **quiet)
        took = time.monotonic() - started
        expected = hashes(whole)
        for kill in range(kills):
            run = Path(temporary) / f"killed-{kill}"
            begun = time.monotonic()
            process = subprocess.Popen(command(*settings, "--out", str(run)), **quiet)
            while not (run / "run.json").is_file() and process.poll() is None:
                time.sleep(0.05)
            ready = time.monotonic() - begun
            moment = rng.uniform(0.02, 0.95) * max(0.5, took - ready)
            time.sleep(moment)
            process.kill()
            process.wait()
            done = [s["name"] for s in json.loads((run / "run.json").read_text())["stages"]]
            subprocess.run(command("audit", "--resume", str(run)), check=True, **quiet)
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
    main()
