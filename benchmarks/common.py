"""Options, machine facts, table and JSON file of all benchmarks."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument(
        "--small", action="store_true", help="smaller sizes, at most two minutes"
    )
    arguments.add_argument("--json", type=Path, help="write figures, rows and machine to this file")
    arguments.add_argument("--seed", type=int, default=0)
    return arguments


def work_option(arguments: argparse.ArgumentParser) -> None:
    """Add --work, for benchmarks that start from audits which others may have run already."""
    arguments.add_argument(
        "--work", type=Path, help="run folders (small versions: deleted unless given)"
    )


def work_folder(options: argparse.Namespace, *, usual: Path, temporary: str) -> Path:
    """Return where run folders go: --work, else ``usual``, or ``temporary`` with --small."""
    if options.work is not None:
        return Path(options.work)
    return Path(temporary) / "work" if options.small else usual


def machine(seed: int) -> dict[str, Any]:
    """Return where and when the figures were measured."""
    cpu = platform.processor() or platform.machine()
    for line in (
        Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    ):
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "inversight": importlib.metadata.version("inversight"),
        "date": datetime.date.today().isoformat(),
        "seed": seed,
    }


def finish(
    title: str,
    figures: dict[str, Any],
    rows: list[dict[str, Any]],
    options: argparse.Namespace,
) -> None:
    """Print the table and write the JSON file."""
    facts = machine(options.seed)
    table = Table(title=title, box=None)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    console = Console(width=160, highlight=False)
    console.print(table)
    for name, value in figures.items():
        console.print(f"{name}: {value}", markup=False)
    console.print(", ".join(f"{k} {v}" for k, v in facts.items()), markup=False)
    if options.json:
        options.json.write_text(
            json.dumps({"figures": figures, "rows": rows, "machine": facts}, indent=2) + "\n"
        )
