"""Run the same audits at two revisions and compare the contents of their metrics and tables.

    uv run python benchmarks/same_results.py --base REVISION [--work DIR] [--audit NAME ...]

Four audits, seed 0, one thread each: ``digits`` (the demonstration), ``faces`` (Olivetti at 32x32, a
small budget), ``attacks`` (the digits, fourteen attacks, a tiny budget) and ``conditional`` (the
fifteenth, on a prior with classes, and a limit of queries). A run that is already in
``--work`` is not repeated. Every difference is printed; the exit code is 1 if there is one above
``--tolerance``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).parents[1]
OLIVETTI = ROOT.parent / "shared" / "data" / "olivetti"
ATTACKS: dict[str, dict[str, Any]] = {
    "plug-and-play": {"steps": 8},
    "gmi": {"steps": 20},
    "ked-mi": {"steps": 20},
    "vmi": {"steps": 20},
    "mirror": {"steps": 20},
    "lomma": {"steps": 8, "images": 200},
    "if-gmi": {"steps": 8},
    "mi-face": {"steps": 20},
    "mirror-black-box": {"population": 12, "generations": 5, "candidates": 6, "keep": 4},
    "cma-es": {"searches": 4, "population": 6, "generations": 5, "keep": 4},
    "c2f-mi": {"population": 8, "generations": 6, "keep": 4},
    "rlb-mi": {"episodes": 240, "candidates": 6, "keep": 4},
    "brep-mi": {"searches": 4, "points": 8, "iterations": 5, "keep": 4},
    "lokt": {"images": 300},
}
SMALL = ["--set", "prior.steps=150", "--set", "adaptation.steps=20"]
AUDITS = {
    "digits": ["--set", "device=cpu"],
    "faces": [
        "--private", str(OLIVETTI / "private"), "--holdout", str(OLIVETTI / "holdout"),
        "--public", str(OLIVETTI / "public"), "--embedding", "public", "--features", "public",
        "--guidance-embedding", "public", "--size", "32", "--device", "cpu", *SMALL,
        "--set", "target_training.epochs=8", "--set", "evaluator_training.epochs=8",
        "--set", "public_training.epochs=8",
        "--set", "attack=[{class: plug-and-play, pool: 300, candidates: 8, steps: 12, keep: 4}]",
    ],
    "attacks": [
        "--arm", "vanilla", "--device", "cpu", *SMALL,
        "--set", "attack=" + json.dumps([{"class": n, **s} for n, s in ATTACKS.items()]),
    ],
    "conditional": [
        "--arm", "pseudo-labels", "--device", "cpu", *SMALL,
        "--set", "attack=[{class: plg-mi, steps: 8}]", "--budget", "2000",
    ],
}  # fmt: skip


def run(source: Path, name: str, out: Path) -> None:
    """Run audit ``name`` with the package in ``source``, unless ``out`` has it already."""
    if (out / "report.html").is_file():
        return
    environment = {**os.environ, "PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "inversight", "audit", "--seed", "0", "--out", str(out)]
    done = subprocess.run(
        [*command, *AUDITS[name]], env=environment, capture_output=True, text=True, cwd=out.parent
    )
    if done.returncode:
        sys.exit(f"{name} at {source} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def checkout(revision: str, folder: Path) -> Path:
    """Clone this repository into ``folder`` at ``revision``, unless it is there; return the folder."""
    if not folder.is_dir():
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
        subprocess.run(["git", "-C", str(folder), "checkout", "-q", revision], check=True)
    return folder


def differences(before: Path, after: Path) -> list[tuple[str, float]]:
    """Return the differences between two runs' metrics and tables, each with its largest relative size."""
    found: list[tuple[str, float]] = []
    old, new = (json.loads((run / "metrics.json").read_text()) for run in (before, after))
    for key in sorted({*old, *new}):
        if key not in old or key not in new:
            found.append((f"metrics.json: {key} is in one run only", math.inf))
            continue
        for part in ("value", "low", "high"):
            a, b = (one[key].get(part) for one in (old, new))
            if a != b:
                found.append((f"metrics.json: {key}.{part} {a} -> {b}", _relative(a, b)))
    tables = {f.relative_to(r) for r in (before, after) for f in r.glob("*.parquet")}
    for name in sorted(tables):
        if not ((before / name).is_file() and (after / name).is_file()):
            found.append((f"{name} is in one run only", math.inf))
            continue
        a, b = pd.read_parquet(before / name), pd.read_parquet(after / name)
        if set(a) != set(b) or len(a) != len(b):
            text = f"{name}: {len(a)} rows, -{sorted(set(a) - set(b))} +{sorted(set(b) - set(a))}"
            found.append((text, math.inf))
        if len(a) != len(b):
            continue
        for column in a.columns.intersection(b.columns):
            x, y = a[column], b[column]
            differ = ~((x == y) | (x.isna() & y.isna()))
            if differ.any():
                worst = max(_relative(p, q) for p, q in zip(x[differ], y[differ], strict=True))
                found.append((f"{name}: {column} differs in {int(differ.sum())} rows", worst))
    return found


def _relative(a: Any, b: Any) -> float:
    if not all(isinstance(v, (int, float)) for v in (a, b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b), 1e-12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, help="revision to compare with")
    parser.add_argument("--work", type=Path, default=Path("runs/same-results"))
    parser.add_argument("--audit", action="append", choices=list(AUDITS), help="default: all")
    parser.add_argument("--tolerance", type=float, default=1e-6)
    given = parser.parse_args()
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    base = checkout(given.base, work / f"source-{given.base}")
    head = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    worst = 0.0
    for name in given.audit or AUDITS:
        folders = [work / f"{name}-{revision}" for revision in (given.base, head)]
        for source, folder in zip((base, ROOT), folders, strict=True):
            run(source, name, folder)
        found = differences(*folders)
        print(f"{name}: {given.base} against {head}: {len(found)} differences")
        for text, size in found:
            print(f"  {text} (relative {size:.1e})")
            worst = max(worst, size)
    sys.exit(int(worst > given.tolerance))


if __name__ == "__main__":
    main()
