"""How well do signals of the target predict which images an attack comes near to?

uv run python benchmarks/triage.py                                  compute what is missing, print the table
uv run python benchmarks/triage.py --runs RUN RUN ...               use these finished audits
uv run python benchmarks/triage.py --table                          print the table of existing results

For each data set and seed one audit (the arm vanilla of benchmarks/study.py, in the same folders) measures
nearest distances and DDCS. Spearman's correlations of each signal and predictor with them are kept in JSON
files under --evidence. "learned" is judged on classes left out of the fit, a fifth of them at a time.
"learned-few" learns from three classes drawn at random and is judged on all others, mean over ten draws.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

from base_audits import base_audit, base_settings
from common import (
    data_options,
    data_parser,
    finish,
    folders,
    interval,
    is_current,
    keep,
    kept,
    machine,
    plus_minus,
    ray_options,
    run_seeds,
)
from inversight.core.run import read_manifest
from inversight.core.seeding import generator
from inversight.pipeline.signals import signals_of
from inversight.pipeline.triage import EXPECTED, LEARNED, MEASURED, triage_run
from inversight.report.reading import read_table
from inversight.risk.signals import SIGNALS
from inversight.risk.triage import agreement, learn
from study import digest_of
from study_data import DATASETS

FEW, DRAWS = 3, 10
"""Number of classes that "learned-few" learns from, and number of draws."""
FEWER = "learned-few"
ORDER = (*SIGNALS, EXPECTED, LEARNED, FEWER)


def main() -> None:
    options = _options()
    with folders(options, usual="benchmarks/out/study"):
        if options.runs:
            found = [_measure(run, *_name(run), settings="given") for run in options.runs]
        else:
            if not options.table:
                run_seeds(_seed, options)
            found = kept(options, "*.json")
        rows = table(found)
        figures = {
            f"{row['data']}_{row['predictor']}_{measure}": row[measure]
            for row in rows
            for measure in MEASURED
        }
        for data in dict.fromkeys(row["data"] for row in rows):
            for measure in MEASURED:
                single = [r for r in rows if r["data"] == data and r["predictor"] in SIGNALS]
                best = max(single, key=lambda r: r[measure])["predictor"]
                figures[f"{data}_best_single_signal_{measure}"] = best
        finish("Spearman correlation with nearness and DDCS", figures, _shown(rows), options)


def _options() -> argparse.Namespace:
    datasets = ("digits", "faces-32", "vehicles-same")
    arguments = data_parser(__doc__ or "", datasets=datasets, evidence="docs/triage")
    ray_options(arguments)
    arguments.add_argument("--runs", nargs="+", type=Path, help="use these finished audits")
    return data_options(arguments, known=DATASETS, seeds="0-2", small_seeds="0-1")


def _seed(name: str, seed: int, options: argparse.Namespace) -> None:
    """Compute the evidence of one data set and seed, unless it exists with these settings."""
    where: dict[str, Any] = {"data": options.data, "work": options.work, "small": options.small}
    settings = digest_of(base_settings(name, seed, **where))
    file = options.evidence / f"{name}-{seed}.json"
    if not is_current(file, settings):
        keep(file, _measure(base_audit(name, seed, **where), name, seed, settings=settings))


def _name(run: Path) -> tuple[str, int]:
    """Return data set and seed of a run folder: DATA-SEED/ARM as in study.py, or the folder's name."""
    seed = int(read_manifest(run)["seed"])
    above = run.absolute().parent.name
    return above.removesuffix(f"-{seed}") if above.endswith(f"-{seed}") else run.name, seed


def _measure(run: Path, name: str, seed: int, *, settings: str) -> dict[str, Any]:
    """Return the correlations in one finished audit, by measure and predictor."""
    found = triage_run(run, seed=seed)
    measures = {
        measure: {predictor: one.as_json() for predictor, one in by.items()}
        for measure, by in found.agreement.items()
    }
    for measure, value in _few(run, seed).items():
        measures[measure][FEWER] = value
    return {
        "data": name,
        "seed": seed,
        "settings": settings,
        "measures": measures,
        "notes": list(found.notes),
        "machine": machine(seed),
    }


def _few(run: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Learn from a few random classes, judge on the others; return means over draws."""
    samples = read_table(run, "samples.parquet", ("id", "label", *MEASURED)).sort_values("id")
    values, labels = signals_of(samples), samples["label"].astype(str).tolist()
    columns = {m: torch.tensor(samples[m].to_numpy(dtype="float64")) for m in MEASURED}
    nearest = columns["nearest_distance"]
    known = nearest.isfinite().tolist()
    classes = sorted({name for name, k in zip(labels, known, strict=True) if k})
    few = min(FEW, len(classes) - 1)
    rng = generator(seed, "learned-few")
    drawn: dict[str, list[tuple[float, float]]] = {measure: [] for measure in MEASURED}
    for _ in range(DRAWS):
        chosen = {classes[i] for i in torch.randperm(len(classes), generator=rng)[:few].tolist()}
        inside = torch.tensor([name in chosen for name in labels])
        learned = learn(values, nearest.masked_fill(~inside, float("nan")), labels)
        for measure in MEASURED:
            sign = -1.0 if measure == "nearest_distance" else 1.0
            measured = (sign * columns[measure]).masked_fill(
                inside | ~nearest.isfinite(), float("nan")
            )
            one = agreement({FEWER: learned.risk}, measured, labels, resamples=0)[FEWER]
            if one.value is not None:
                drawn[measure].append((one.value, float(one.extra.get("within", one.value))))
    return {
        measure: {
            "value": statistics.mean(v for v, _ in values_),
            "within": statistics.mean(w for _, w in values_),
            "classes": few,
            "draws": len(values_),
        }
        for measure, values_ in drawn.items()
        if values_
    }


def table(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each data set and predictor: means over seeds ± half of the 95 % interval."""
    rows = []
    for data in dict.fromkeys(f["data"] for f in found):
        own = sorted((f for f in found if f["data"] == data), key=lambda f: f["seed"])
        for predictor in ORDER:
            row: dict[str, Any] = {"data": data, "predictor": predictor}
            for measure in MEASURED:
                for key in ("value", "within"):
                    got = [f["measures"][measure].get(predictor, {}).get(key) for f in own]
                    got = [v for v in got if v is not None]
                    if not got:
                        continue
                    name = measure if key == "value" else f"{measure}_within"
                    row[name], row[f"{name}_half"] = interval(got)
                    row["seeds"] = len(got)
            if all(measure in row for measure in MEASURED):
                rows.append(row)
    return rows


def _shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    shown = []
    for row in rows:
        cells = {"data": row["data"], "predictor": row["predictor"], "seeds": row["seeds"]}
        for measure in MEASURED:
            for name in (measure, f"{measure}_within"):
                half = row.get(f"{name}_half")
                cells[name] = plus_minus(row[name], half, ".2f") if name in row else "-"
        shown.append(cells)
    return shown


if __name__ == "__main__":
    main()
