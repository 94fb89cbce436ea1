"""What the commands print: errors on stderr, results on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

_CONSOLE = Console(highlight=False, markup=False, emoji=False)
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


def print_plan(found: Sequence[Any]) -> None:
    """Print what shadow models would take and could find."""
    from inversight.report.formatting import duration

    rows = [
        (
            str(one.models),
            "unknown" if one.seconds is None else duration(one.seconds),
            "no image is flagged" if one.single is None else f"{one.single:.2f}",
            f"{one.mean:.3f}",
        )
        for one in found
    ]
    _print_table(("models", "time", "one image", "mean"), rows)
    spread = (
        "as it is over the shadow models of this run"
        if found[0].measured
        else "as measured on the digits, since this run has no shadow models; yours may differ"
    )
    _say(
        "\nOne image, mean: how many times nearer reconstructions have to come to a single image, or to the "
        "private images on average, because the model was trained on it, to be found in four of five "
        f"experiments. Computed from how much distances vary between models, {spread}."
    )


def print_result(result: Any) -> None:
    """Print the metrics, the verdict, the stages and the private images nearest to a reconstruction."""
    from inversight.core.run import read_manifest
    from inversight.report import summary
    from inversight.report.contents import nearest_first
    from inversight.report.formatting import duration, interval_text, number
    from inversight.report.reading import read_mapping

    metrics = result.metrics
    rows = [
        (key, one.get("features", ""), number(one["value"]), interval_text(one))
        for key, one in metrics.items()
        if one["value"] is not None
    ]
    _print_table(("metric", "features", "value", "95 % interval"), rows)
    caveats: dict[str, list[str]] = {}
    for key, one in metrics.items():
        if one.get("caveat"):
            caveats.setdefault(one["caveat"], []).append(key)
    for text, keys in caveats.items():
        _say(f"\nCaveat of {', '.join(keys)}: {text}.")
    _say(f"\n{summary(metrics)}")
    by_set = read_mapping(result.run, "metrics_by_set.json")
    if len(by_set) > 1:
        nearest = result.samples["nearest_set"].value_counts()
        keys = [k for k in ("ddcs_best", "covered", "coverage", "accuracy_top1") if k in metrics]
        rows_by_set = [
            (name, f"{nearest.get(name, 0)} images", *(number(found[k]["value"]) for k in keys))
            for name, found in by_set.items()
        ]
        _say("")
        _print_table(("reconstructions", "nearest of", *keys), rows_by_set)
    manifest = read_manifest(result.run)
    if queries := manifest.get("queries"):
        sent = ", ".join(f"{name} {count:,}" for name, count in queries.items())
        _say(f"\nImages sent to the target: {sent}")
    if stages := manifest.get("stages"):
        took = ", ".join(f"{s['name']} {duration(s['seconds'])}" for s in stages)
        _say(f"\nStages: {took}")
    if "exposure" in result.samples:
        _say("\nLargest exposure, how many times nearer because the model was trained on them:")
        for row in result.samples.head(3).itertuples():
            spread = interval_text({"low": row.exposure_low, "high": row.exposure_high})
            _say(f"  {row.id}  {row.exposure:.2f} times ({spread}), p = {number(row.exposure_p)}")
    _say("\nNearest to a reconstruction of their class:")
    for row in nearest_first(result.samples).head(3).itertuples():
        distance = number(row.nearest_distance)
        _say(f"  {row.id}  distance {distance}  nearest {row.nearest_reconstruction}")
    _say(f"\nReport: {result.report}")


def print_triage(found: Any, out: Path | None) -> None:
    """Print the images most at risk by the signals, and how well signals agree with an attack."""
    from inversight.pipeline.triage import EXPECTED, LEARNED, TABLE
    from inversight.report.formatting import interval_text, number, visible

    keys = [k for k in (LEARNED, EXPECTED, "nearest_distance", "twins") if k in found.table]
    rows = found.table[["id", "label", *keys]].head(_TRIAGE_ROWS).itertuples(index=False)
    _say("Most at risk by the signals (higher is more at risk):")
    _print_table(("image", "class", *keys), ([visible(number(c)) for c in row] for row in rows))
    for measure, signals in found.agreement.items():
        what = {"nearest_distance": "nearness (-nearest_distance)"}.get(measure, measure)
        _say(f"\nSpearman correlation with {what}, {found.measured_in}:")
        agreements = (
            (name, number(one.value), interval_text(vars(one)), number(one.extra.get("within")))
            for name, one in signals.items()
        )
        _print_table(("signal", "value", "95 % interval", "within classes"), agreements)
        if measure in found.best:
            _say(f"best single signal, here: {found.best[measure]}")
    for note in found.notes:
        _say(note)
    if out is not None:
        _say(f"\n{out / TABLE}")


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    _CONSOLE.print(table)


def _say(text: str) -> None:
    _CONSOLE.print(text, soft_wrap=True)
