"""How far to truncate the prior that Plug & Play draws its pool from: 0.5 as published, or less.

uv run python benchmarks/truncation.py                                  what is missing
uv run python benchmarks/truncation.py --datasets digits --seeds 0-2
uv run python benchmarks/truncation.py --table                          the table of what is there

On the targets and priors of base_audits.py, vanilla adapted as in attacks.py, as the quick preset
attacks. Each seed and data set leaves a JSON file under --evidence, from which it goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from attack_problem import MEASURES, STEPS, Attacked
from common import finish, machine, parser
from study import LOWER_IS_BETTER, interval, numbers

TRUNCATIONS = (0.5, 0.7, 1.0)
SHOWN = ("ddcs_best", "covered", "coverage", "frechet", "knn_distance", "accuracy_top1")


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--datasets", default=",".join(STEPS), type=lambda text: text.split(","))
    made.add_argument("--seeds", default=None, help="for example 0-2 or 0,3")
    made.add_argument("--data", type=Path, default=Path("../shared/data"), help="the image folders")
    made.add_argument("--work", type=Path, default=Path("benchmarks/out/defences"))
    made.add_argument("--evidence", type=Path, default=Path("docs/truncation"))
    made.add_argument("--table", action="store_true", help="run nothing")
    options = made.parse_args()
    options.seeds = numbers(options.seeds or ("0" if options.small else "0-2"))
    with tempfile.TemporaryDirectory() as temporary:
        if options.small:
            options.datasets = ["digits"]
            options.evidence, options.work = Path(temporary) / "evidence", Path(temporary) / "work"
        for name in [] if options.table else options.datasets:
            for seed in options.seeds:
                file = _file(options, name, seed)
                if not file.is_file():
                    measured = _measured(name, seed, options)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    partial = file.with_suffix(".partial")
                    partial.write_text(json.dumps(measured, indent=1) + "\n")
                    partial.replace(file)
        rows = table(options)
    if not rows:
        raise SystemExit(f"{options.evidence}: no results of seeds {options.seeds} yet")
    finish(f"truncation of Plug & Play's pool, seeds {options.seeds}", {}, rows, options)


def _measured(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    problem = Attacked.of(
        name, seed, data=options.data, work=options.work, small=options.small
    ).first(10)
    prior = problem.prior("vanilla", 16 if options.small else STEPS[name])
    measures = {}
    for truncation in TRUNCATIONS:
        attack = problem.attack("plug-and-play", truncation=truncation)
        values, _ = problem.scored(problem.run(attack, prior)[0])
        measures[str(truncation)] = {one: values.get(one) for one in MEASURES}
    return {"data": name, "seed": seed, "machine": machine(seed), "measures": measures}


def table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Means over seeds; in brackets the mean paired gain over 0.5, and half of its 95 % interval."""
    rows = []
    for name in STEPS:
        files = [f for f in (_file(options, name, seed) for seed in options.seeds) if f.is_file()]
        found = [json.loads(f.read_text())["measures"] for f in files]
        for truncation in map(str, TRUNCATIONS if found else ()):
            row: dict[str, Any] = {"data": name, "truncation": truncation, "seeds": len(found)}
            for measure in SHOWN:
                mean, _ = interval([one[truncation][measure] for one in found])
                sign = -1.0 if measure in LOWER_IS_BETTER else 1.0
                gain, half = interval(
                    [sign * (one[truncation][measure] - one["0.5"][measure]) for one in found]
                )
                row[measure] = f"{mean:.3g}"
                if truncation != "0.5":
                    row[measure] += f" ({gain:+.2g}" + (f" ± {half:.2g})" if half else ")")
            rows.append(row)
    return rows


def _file(options: argparse.Namespace, name: str, seed: int) -> Path:
    file: Path = options.evidence / f"{name}-{seed}.json"
    return file


if __name__ == "__main__":
    main()
