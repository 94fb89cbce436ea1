"""How long does an audit take on this machine, stage by stage, now and at another commit?

    uv run python benchmarks/audit_stages.py                         digits and faces, as they are now
    uv run python benchmarks/audit_stages.py --before 83aead6        and as they were at another commit
    uv run python benchmarks/audit_stages.py --datasets digits

Audits with the preset ``quick`` and without shadow models: the embedded digits, and Olivetti faces whose
private shots are drawn by seed. Nothing is downloaded: the faces' distances, features and guidance are those of
the public network. Each audit is a process of its own, started as a user does, who has Python's bytecode of all
modules from an earlier command; with ``--repeats`` the versions take turns, and times are medians.

NAME_seconds             from the start of the process to its end
NAME_before_over_now     the same at the other commit, divided by it
NAME_other_seconds       what is no stage: imports, reading images, the estimate, the report

A stage that another process runs beside the prior adds nothing to the whole.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import finish, listed, parser
from inversight.core.run import read_manifest
from same_results import ROOT, checkout
from study_data import PUBLIC_FEATURES, faces

DATASETS = ("digits", "faces")
OTHER = "other"
"""The row of what is no stage."""
WHOLE = "whole audit"
TINY = (
    "prior.steps=40", "adaptation.steps=4", "target_training.epochs=4", "evaluator_training.epochs=4",
    "public_training.epochs=4",
)  # fmt: skip


def main() -> None:
    arguments = parser(__doc__ or "", small=False)
    arguments.add_argument("--datasets", default=",".join(DATASETS), type=listed)
    arguments.add_argument("--before", help="commit to compare with")
    arguments.add_argument("--repeats", type=int, default=1, help="audits of each version")
    arguments.add_argument("--data", type=Path, default=Path("../shared/data"))
    options = arguments.parse_args()
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        versions = {"now": ROOT}
        if options.before:
            versions = {"before": checkout(options.before, home / "source"), **versions}
        for name in options.datasets:
            given = _given(name, options, home)
            found = _times(given, versions, options.repeats, home / name)
            rows += [{"data": name, **row} for row in _rows(found)]
            whole = {version: times[WHOLE] for version, times in found.items()}
            figures[f"{name}_seconds"] = whole["now"]
            figures[f"{name}_other_seconds"] = found["now"][OTHER]
            if "before" in whole:
                figures[f"{name}_before_over_now"] = whole["before"] / whole["now"]
    finish("seconds of an audit without shadow models, preset quick", figures, rows, options)


def _given(name: str, options: Any, home: Path) -> list[str]:
    """Return the arguments of the audit of data set ``name``."""
    given = ["--preset", "quick", "--shadows", "0", "--seed", str(options.seed)]
    if name == "faces":
        drawn = faces(options.seed, options.data / "olivetti", home)
        named = {
            **{role: drawn / role for role in ("private", "holdout", "public")},
            **PUBLIC_FEATURES,
        }
        for key, value in named.items():
            given += [f"--{key.replace('_', '-')}", str(value)]
    if options.tiny:
        for setting in TINY:
            given += ["--set", setting]
    return given


def _times(
    given: list[str], versions: dict[str, Path], repeats: int, home: Path
) -> dict[str, dict[str, float]]:
    """Return the median seconds of each stage of the audit, of the rest and of all, for each version."""
    home.mkdir()
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", "import inversight.pipeline.audit, torch._dynamo"]
    subprocess.run(command, env=usual, check=True)  # writes the bytecode
    found: dict[str, list[dict[str, float]]] = {version: [] for version in versions}
    for number in range(repeats):
        for version, source in versions.items():
            run = home / f"{version}-{number}"
            command = [sys.executable, "-m", "inversight", "audit", "--out", str(run), *given]
            environment = {**usual, "PYTHONPATH": str(source / "src")}
            started = time.perf_counter()
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, cwd=home
            )
            seconds = time.perf_counter() - started
            if done.returncode:
                sys.exit(f"{version} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
            manifest = read_manifest(run)
            stages = {s["name"]: float(s["seconds"]) for s in manifest["stages"]}
            beside = manifest.get("beside")  # takes no time of its own
            other = seconds - sum(took for name, took in stages.items() if name != beside)
            found[version].append({**stages, OTHER: other, WHOLE: seconds})
            print(f"{version}: {seconds:.1f} s", flush=True)
    return {
        version: {stage: statistics.median(one[stage] for one in runs) for stage in runs[0]}
        for version, runs in found.items()
    }


def _rows(found: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Return a row for each stage, "" where a version has no such stage."""
    stages = list(dict.fromkeys(stage for times in found.values() for stage in times))
    stages = [s for s in stages if s not in (OTHER, WHOLE)] + [OTHER, WHOLE]
    return [
        {"stage": stage, **{f"{v} (s)": times.get(stage, "") for v, times in found.items()}}
        for stage in stages
    ]


if __name__ == "__main__":
    main()
