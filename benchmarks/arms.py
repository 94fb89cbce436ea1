"""The three arms of the adaptation on one data set: whole audits that share all stages before it.

uv run python benchmarks/arms.py                      the embedded digits
uv run python benchmarks/arms.py --data FOLDER        FOLDER/private, FOLDER/holdout, FOLDER/public
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from common import finish, parser
from inversight.audit import Plan
from inversight.console import Terminal
from inversight.run import Run
from inversight.settings import resolve

SHARED = ("target", "evaluator", "public-network", "prior")
ARMS = ("vanilla", "entropy", "natural-gradient")
SMALL = {
    "prior": {"steps": 100},
    "adaptation": {"steps": 20},
    "target_training": {"epochs": 20},
    "evaluator_training": {"epochs": 20},
    "public_training": {"epochs": 5},
    "attack": [
        {
            "class": "plug-and-play",
            "pool": 500,
            "candidates": 10,
            "keep": 5,
            "steps": 10,
            "crops": 5,
        }
    ],
}


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--data", type=Path, help="folder with private, holdout and public")
    made.add_argument("--out", type=Path, help="keep the run folders here")
    made.add_argument("--limit", type=int, help="the first so many classes")
    options = made.parse_args()
    given: dict[str, Any] = {"seed": options.seed}
    if options.data is not None:
        given |= {name: options.data / name for name in ("private", "holdout", "public")}
        given |= {"embedding": "public", "features": "public", "guidance_embedding": "public"}
    if options.limit:
        given["limit"] = options.limit
    if options.small:
        given |= SMALL
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        for arm in ARMS:
            folder = out / arm
            reporter = Terminal()
            plan = Plan.prepare(
                resolve({**given, "arm": arm, "guidance_embedding": "public"}), reporter
            )
            first = out / ARMS[0] / "stages"
            run = Run.create(folder, plan.manifest()) if not folder.exists() else Run.open(folder)
            for stage in SHARED:
                # The stages before the adaptation are the same in every arm, from the same seed.
                if arm != ARMS[0] and not (folder / "stages" / stage).exists():
                    shutil.copytree(first / stage, folder / "stages" / stage)
            started = time.perf_counter()
            with reporter.live():
                result = plan.execute(run, reporter)
            run.close()
            row: dict[str, Any] = {"arm": arm}
            for key in (
                "accuracy_top1",
                "ddcs_best",
                "ddcs_average",
                "covered",
                "coverage",
                "density",
                "precision",
                "recall",
                "frechet",
                "knn_distance",
            ):
                row[key] = result.metrics[key]["value"]
            row["minutes"] = (time.perf_counter() - started) / 60
            size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            row["run_megabytes"] = size / 1e6
            rows.append(row)
    figures = {f"{row['arm']}_ddcs_best": row["ddcs_best"] for row in rows}
    finish(f"arms on {options.data or 'the embedded digits'}", figures, rows, options)


if __name__ == "__main__":
    main()
