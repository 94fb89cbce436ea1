"""What the commands print: errors on stderr, results on stdout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_TRIAGE_ROWS = 10
"""Images that triage prints."""


def complain(text: str) -> None:
    """Print ``text`` in one line on stderr."""
    print(f"inversight: {' '.join(text.split())}", file=sys.stderr)


def finish(result: Any) -> None:
    """Print the result of an audit or a scoring; exit with 3 if a condition of --fail-on holds."""
    print_result(result)
    if result.exceeded:
        complain(f"--fail-on: {', '.join(result.crossed)}")
        raise typer.Exit(3)


def print_result(result: Any) -> None:
    """Print the metrics, the verdict, the stages and the private images nearest to a reconstruction."""
    from inversight.core.run import read_manifest
    from inversight.report import summary
    from inversight.report.formatting import duration

    console = Console(highlight=False)
    table = _table("metric", "value", "95 % interval")
    for key, metric in result.metrics.items():
        if metric["value"] is not None:
            name = key if not metric.get("features") else f"{key} ({metric['features']})"
            interval = _interval(metric.get("low"), metric.get("high"), "{:.3g} to {:.3g}")
            table.add_row(name, f"{metric['value']:.4g}", interval)
    console.print(table)
    _say(console, f"\n{summary(result.metrics)}")
    _print_sets(console, result)
    manifest = read_manifest(result.run)
    queries = manifest.get("queries") or {}
    if queries:
        sent = ", ".join(f"{name} {count:,}" for name, count in queries.items())
        _say(console, f"\nImages sent to the target: {sent}")
    stages = manifest.get("stages", [])
    if stages:
        took = ", ".join(f"{s['name']} {duration(s['seconds'])}" for s in stages)
        _say(console, f"\nStages: {took}")
    _say(console, "\nNearest to a reconstruction of their class:")
    for row in result.samples.head(3).itertuples():
        _say(
            console,
            f"  {row.id}  distance {row.nearest_distance:.4g}  nearest {row.nearest_reconstruction}",
        )
    _say(console, f"\nReport: {result.report}")


def _print_sets(console: Console, result: Any) -> None:
    """Print a row for each set of reconstructions if there are several."""
    from inversight.report.reading import read_mapping

    by_set = read_mapping(result.run, "metrics_by_set.json")
    if len(by_set) < 2:
        return
    nearest = result.samples["nearest_set"].value_counts()
    keys = [k for k in ("ddcs_best", "covered", "coverage", "accuracy_top1") if k in result.metrics]
    table = _table("reconstructions", "nearest of", *keys)
    for name, metrics in by_set.items():
        values = [metrics[key]["value"] for key in keys]
        images = f"{nearest.get(name, 0)} images"
        table.add_row(name, images, *("-" if v is None else f"{v:.4g}" for v in values))
    console.print()
    console.print(table)


def print_triage(found: Any, out: Path | None) -> None:
    """Print the images most at risk by the signals, and how well signals agree with an attack."""
    from inversight.pipeline.triage import EXPECTED, LEARNED, TABLE
    from inversight.report.formatting import number, visible

    console = Console(highlight=False)
    keys = [k for k in (LEARNED, EXPECTED, "nearest_distance", "twins") if k in found.table]
    table = _table("image", "class", *keys)
    for row in found.table.head(_TRIAGE_ROWS).to_dict("records"):
        cells = [number(None if row[k] is None else row[k]) for k in keys]
        table.add_row(*(escape(visible(str(c))) for c in (row["id"], row["label"], *cells)))
    _say(console, "Most at risk by the signals (higher is more at risk):")
    console.print(table)
    for measure, signals in found.agreement.items():
        what = {"nearest_distance": "nearness (-nearest_distance)"}.get(measure, measure)
        console.print(f"\nSpearman correlation with {what}, {found.measured_in}:", markup=False)
        table = _table("signal", "value", "95 % interval", "within classes")
        for name, one in signals.items():
            within = one.extra.get("within")
            table.add_row(
                name,
                "-" if one.value is None else f"{one.value:.2f}",
                _interval(one.low, one.high, "{:.2f} to {:.2f}"),
                "" if within is None else f"{within:.2f}",
            )
        console.print(table)
        if measure in found.best:
            console.print(f"best single signal, here: {found.best[measure]}", markup=False)
    for note in found.notes:
        _say(console, note)
    if out is not None:
        _say(console, f"\n{out / TABLE}")


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False)


def _interval(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else form.format(low, high)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
