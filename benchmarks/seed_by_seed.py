"""Benchmarks that keep a JSON file for each data set and seed, and compute what is missing."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from common import data_options, data_parser, finish, folders, interval, keep, plus_minus
from study import LOWER_IS_BETTER

Measures = dict[str, dict[str, float | None]]
"""Variant -> measure -> value."""


def run(
    title: str,
    doc: str,
    *,
    datasets: Sequence[str],
    seeds: str,
    evidence: str,
    work: str,
    measure: Callable[[str, int, argparse.Namespace], dict[str, Any]],
    rows: Callable[[str, list[Measures]], list[dict[str, Any]]],
    figures: Callable[[list[Measures]], dict[str, Any]] | None = None,
) -> None:
    """Run such a benchmark, from its options to its table.

    ``measure`` returns the facts kept for a data set and seed, with ``measures``. ``rows`` returns the table's
    rows of a data set from the measures of its seeds, ``figures`` what is printed below. --tiny takes digits
    with seed 0 and keeps nothing.
    """
    arguments = data_parser(doc, datasets=datasets, evidence=evidence)
    options = data_options(arguments, known=datasets, seeds=seeds, small_seeds="0")
    with folders(options, usual=work):
        shown, below = [], {}
        for name in options.datasets:
            files = {seed: options.evidence / f"{name}-{seed}.json" for seed in options.seeds}
            for seed, file in files.items():
                if not options.table and not file.is_file():
                    keep(file, measure(name, seed, options))
            found = [json.loads(f.read_text())["measures"] for f in files.values() if f.is_file()]
            if found:
                shown += rows(name, found)
                below |= figures(found) if figures else {}
    if not shown:
        raise SystemExit(f"{options.evidence}: no results of seeds {options.seeds} yet")
    finish(f"{title}, seeds {options.seeds}", below, shown, options)


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
            row[measure] = f"{statistics.mean(seed[one][measure] for seed in found):.3g}"
            if one != over:
                sign = -1.0 if measure in LOWER_IS_BETTER else 1.0
                gains = [sign * (seed[one][measure] - seed[over][measure]) for seed in found]
                row[measure] += f" ({plus_minus(*interval(gains), '+.2g', '.2g')})"
        table.append(row)
    return table
