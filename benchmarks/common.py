"""What benchmarks share: options, kept results, intervals, figures, machine facts and the printed table."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import math
import platform
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import t

from inversight.core.cluster import joined, pack, unpack
from inversight.core.run import write_json

Key = TypeVar("Key")


class _Tiny(argparse.Action):
    """An option that sets ``small`` and ``tiny``: what has no tiny size of its own takes the small one."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
        option_string: str | None = None,
    ) -> None:  # fmt: skip
        namespace.small = namespace.tiny = True


def parser(description: str, *, small: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark.

    ``small``: whether --small has sizes at which figures mean what those of the whole benchmark mean.
    Otherwise it is --tiny.
    """
    arguments = argparse.ArgumentParser(description=description)
    if small:
        arguments.add_argument(
            "--small", action="store_true", help="smaller sizes, at most three minutes on two cores"
        )
    arguments.add_argument(
        "--tiny", *([] if small else ["--small"]), action=_Tiny, nargs=0,
        help="tiny sizes: shows whether the benchmark runs, and its figures mean nothing",
    )  # fmt: skip
    arguments.set_defaults(small=False, tiny=False)
    arguments.add_argument("--json", type=Path, help="write figures, rows and machine to this file")
    arguments.add_argument("--seed", type=int, default=0)
    return arguments


def data_parser(
    doc: str, *, datasets: Iterable[str], evidence: str, small: bool = False
) -> argparse.ArgumentParser:
    """Return a parser for a benchmark that keeps a result for each data set and seed."""
    arguments = parser(doc, small=small)
    arguments.add_argument("--datasets", default=",".join(datasets), type=listed)
    arguments.add_argument("--seeds", help="for example 0-2 or 0,3")
    arguments.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="the image folders"
    )
    arguments.add_argument(
        "--work", type=Path, help="run folders (small versions: deleted unless given)"
    )
    arguments.add_argument("--evidence", type=Path, default=Path(evidence))
    arguments.add_argument("--table", action="store_true", help="run nothing")
    return arguments


def data_options(
    arguments: argparse.ArgumentParser, *, known: Iterable[str], seeds: str, small_seeds: str
) -> argparse.Namespace:
    """Return the options of :func:`data_parser`; small versions take the digits."""
    options = arguments.parse_args()
    options.seeds = numbers(options.seeds or (small_seeds if options.small else seeds))
    if options.small:
        options.datasets = ["digits"]
    unknown = [name for name in options.datasets if name not in known]
    if unknown:
        raise SystemExit(f"--datasets: expected some of {', '.join(known)}, found {unknown}")
    return options


@contextmanager
def folders(
    options: argparse.Namespace, *, usual: str, temporary: Sequence[str] = ("evidence",)
) -> Iterator[None]:
    """Set where run folders go, by default ``usual``.

    Small versions delete them afterwards, and what goes to the options that ``temporary`` names.
    """
    with tempfile.TemporaryDirectory() as deleted:
        if options.work is None:
            options.work = Path(deleted) / "work" if options.small else Path(usual)
        for name in temporary if options.small else ():
            setattr(options, name, Path(deleted) / name)
        yield


def ray_options(arguments: argparse.ArgumentParser) -> None:
    """Add the options of :func:`run_seeds`."""
    arguments.add_argument(
        "--ray", metavar="ADDRESS", help="run each data set and seed as a task on a Ray cluster"
    )
    arguments.add_argument("--threads", type=int, default=1, help="cores of a task with --ray")


def run_seeds(
    run: Callable[[str, int, argparse.Namespace], None], options: argparse.Namespace
) -> None:
    """Call ``run(data set, seed, options)`` for each chosen data set and seed, with --ray on a cluster.

    A task on a cluster writes to folders of its own, and what it adds to --evidence is kept here. Its run
    folders are deleted, so that a task that was stopped begins again.
    """
    jobs = [(name, seed) for seed in options.seeds for name in options.datasets]
    if options.ray is None:
        for name, seed in jobs:
            run(name, seed, options)
        return
    own = argparse.Namespace(**{**vars(options), "data": options.data.absolute(), "ray": None})
    sent = pack(options.evidence) if options.evidence.is_dir() else {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    failed = []
    with joined(options.ray, workers=1, threads=options.threads, device=device) as cluster:
        assert cluster is not None
        files = cluster.put_files({f"evidence/{path}": content for path, content in sent.items()})
        tasks = {job: cluster.submit(_run_seed, run, *job, own, files=(files,)) for job in jobs}
        for (name, seed), found in cluster.results(tasks):
            if isinstance(found, Exception):
                failed.append(f"{name}, seed {seed}: {found}")
                print(f"failed: {failed[-1]}")
                continue
            print(f"done: {name}, seed {seed}")
            paths = {path.removeprefix("evidence/"): content for path, content in found.items()}
            new = {path: content for path, content in paths.items() if sent.get(path) != content}
            unpack(new, options.evidence)
    if failed:
        raise SystemExit(f"{len(failed)} of {len(jobs)} failed; the same command runs them again")


def _run_seed(
    run: Callable[[str, int, argparse.Namespace], None], name: str, seed: int,
    options: argparse.Namespace, folder: Path,
) -> None:  # fmt: skip
    """Run one seed in the folder of a task, and leave nothing but evidence there."""
    options.evidence, options.work = folder / "evidence", folder / "work"
    run(name, seed, options)
    shutil.rmtree(options.work, ignore_errors=True)


def listed(text: str) -> list[str]:
    """Return the names in "a,b"."""
    return text.split(",")


def numbers(text: str) -> list[int]:
    """Return the seeds in "5-9" or "0,3"."""
    first, _, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if last else [int(n) for n in text.split(",")]


def keep(file: Path, facts: dict[str, Any]) -> None:
    """Write a result."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, facts)


def kept(options: argparse.Namespace, pattern: str) -> list[dict[str, Any]]:
    """Return the results of the chosen data sets and seeds in files that match ``pattern``."""
    found = [json.loads(f.read_text()) for f in sorted(options.evidence.glob(pattern))]
    found = [f for f in found if f["seed"] in options.seeds and f["data"] in options.datasets]
    if not found:
        raise SystemExit(f"{options.evidence}: no results of seeds {options.seeds} yet")
    return found


def is_current(file: Path, settings: str) -> bool:
    """Return whether ``file`` holds a result with these settings."""
    return file.is_file() and json.loads(file.read_text())["settings"] == settings


def digest(values: Any) -> str:
    """Return a hash of settings that a result depends on."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and half the width of its 95 % interval by Student's t; None for one value."""
    if len(values) < 2:
        return (values[0] if values else math.nan), None
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), half


def p_of_no_gain(values: Sequence[float]) -> float | None:
    """Return the two-sided p value of a mean of 0 by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean, half = interval(values)
    if not half:
        return 1.0 if mean == 0 else 0.0
    n = len(values)
    return float(2 * t.sf(abs(mean) / half * t.ppf(0.975, n - 1), n - 1))


def holm(p: dict[Key, float]) -> dict[Key, float]:
    """Return p values corrected for their number (Holm 1979): all of them are right with 1 - the level."""
    found: dict[Key, float] = {}
    largest = 0.0
    for rank, key in enumerate(sorted(p, key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[key]))
        found[key] = largest
    return found


def plus_minus(value: float, half: float | None, form: str, half_form: str | None = None) -> str:
    """Return a value and half the width of its interval, if there is one, in these formats."""
    return f"{value:{form}}" + ("" if half is None else f" ± {half:{half_form or form}}")


def pyplot() -> Any:
    """Return matplotlib.pyplot, which needs no screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save_figure(figure: Any, path: Path, dpi: int = 110) -> None:
    """Write a figure to ``path`` and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    pyplot().close(figure)


def in_own_process(function: Callable[..., Key], *given: Any) -> Key:
    """Return ``function(*given)``, called in a process that starts with what this one has imported."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as alone:
        return alone.submit(function, *given).result()


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


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows with the same keys as a table."""
    table = Table(title=title, box=None)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=160, highlight=False).print(table)


def finish(
    title: str, figures: dict[str, Any], rows: list[dict[str, Any]], options: argparse.Namespace
) -> None:
    """Print the table and write the JSON file."""
    facts = machine(options.seed)
    print_table(title, rows)
    console = Console(width=160, highlight=False)
    for name, value in figures.items():
        console.print(f"{name}: {value}", markup=False)
    console.print(", ".join(f"{k} {v}" for k, v in facts.items()), markup=False)
    if vars(options).get("tiny"):
        console.print("--tiny: these figures show that the benchmark runs, and nothing else")
    if options.json:
        options.json.write_text(
            json.dumps({"figures": figures, "rows": rows, "machine": facts}, indent=2) + "\n"
        )
