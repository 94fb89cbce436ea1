"""Benchmarks that keep a JSON file for each data set and seed, and compute what is missing."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import finish, parser, work_folder, work_option
from inversight.core.run import write_json
from study import LOWER_IS_BETTER, interval, numbers

Measures = dict[str, dict[str, float | None]]
"""Variant -> measure -> value."""


def run(
    title: str,
    doc: str,
    *,
    datasets: Sequence[str],
    seeds: str,
    evidence: Path,
    work: Path,
    measure: Callable[[str, int, argparse.Namespace], dict[str, Any]],
    rows: Callable[[str, list[Measures]], list[dict[str, Any]]],
) -> None:
    """Run such a benchmark, from its options to its table.

    ``measure`` returns the facts kept for a data set and seed, with ``measures``. ``rows`` returns the table's
    rows of a data set from the measures of its seeds. --small takes digits with seed 0 and keeps nothing.
    """
    arguments = parser(doc)
    arguments.add_argument(
        "--datasets", default=",".join(datasets), type=lambda text: text.split(",")
    )
    arguments.add_argument("--seeds", default=None, help="for example 5-9 or 0,3")
    arguments.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="the image folders"
    )
    work_option(arguments)
    arguments.add_argument("--evidence", type=Path, default=evidence)
    arguments.add_argument("--table", action="store_true", help="run nothing")
    options = arguments.parse_args()
    options.seeds = numbers(options.seeds or ("0" if options.small else seeds))
    unknown = [name for name in options.datasets if name not in datasets]
    if unknown:
        raise SystemExit(f"--datasets: expected some of {', '.join(datasets)}, found {unknown}")
    with tempfile.TemporaryDirectory() as temporary:
        options.work = work_folder(options, usual=work, temporary=temporary)
        if options.small:
            options.datasets = ["digits"]
            options.evidence = Path(temporary) / "evidence"
        shown = []
        for name in options.datasets:
            files = {seed: options.evidence / f"{name}-{seed}.json" for seed in options.seeds}
            for seed, file in files.items():
                if not options.table and not file.is_file():
                    facts = measure(name, seed, options)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_json(file, facts)
            found = [json.loads(f.read_text())["measures"] for f in files.values() if f.is_file()]
            shown += rows(name, found) if found else []
    if not shown:
        raise SystemExit(f"{options.evidence}: no results of seeds {options.seeds} yet")
    finish(f"{title}, seeds {options.seeds}", {}, shown, options)


def gains(
    name: str,
    found: list[dict[str, dict[str, Any]]],
    *,
    what: str,
    of: Sequence[str],
    over: str,
    shown: Sequence[str],
) -> list[dict[str, Any]]:
    """Return the rows of a data set: means over seeds of the measures ``shown``.

    In brackets, except for ``over``, the mean paired gain over that variant, positive where better, ± half
    of its 95 % interval. ``what`` is the column that names the variant (one of ``of``).
    """
    table = []
    for one in of:
        row: dict[str, Any] = {"data": name, what: one, "seeds": len(found)}
        for measure in shown:
            mean, _ = interval([seed[one][measure] for seed in found])
            row[measure] = f"{mean:.3g}"
            if one != over:
                sign = -1.0 if measure in LOWER_IS_BETTER else 1.0
                gain, half = interval(
                    [sign * (seed[one][measure] - seed[over][measure]) for seed in found]
                )
                row[measure] += f" ({gain:+.2g}" + (f" ± {half:.2g})" if half else ")")
        table.append(row)
    return table
