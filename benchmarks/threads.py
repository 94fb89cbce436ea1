"""Does an audit choose the fastest number of threads, and does it bear other processes beside it?

uv run python benchmarks/threads.py            about ten minutes on two quiet cores
uv run python benchmarks/threads.py --small    shorter trainings, no prior of 64x64, about three minutes
uv run python benchmarks/threads.py --parts choice

Only on a machine with nothing else on it. Two parts:

load     the audit of the digits without shadow models, from the command line, alone and beside two processes
         that compute without pause, all on the same two cores
choice   training steps of priors and of a classifier, and LPIPS features, with 1, 2, 4, ... threads in turn,
         and the number that the trial of an audit chooses; with waiting threads that sleep, as the command line
         has them, and with PyTorch's default, where they spin

contended_over_quiet   time of the audit beside two busy processes, over that alone
ours_over_best         time with the chosen number of threads over that with the best, the largest of the kinds
passive_over_default   time of sleeping threads over that of spinning ones with as many threads as cores, the
                       largest of the kinds
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common import finish, listed, parser
from inversight.core.seeding import generator
from inversight.core.threads import ThreadTrials, usable_threads, using_threads
from inversight.data import ImageSet
from inversight.embeddings.lpips import Lpips, random_backbone
from inversight.models.training import train_classifier
from inversight.pipeline.timing import seconds_per_step
from inversight.priors import train_prior
from inversight.settings import PriorTraining, Training, resolve_prior_training, stage_budgets

PRIORS: dict[int, str] = {8: "quick", 32: "quick", 64: "standard"}
"""Image sizes of priors, and the preset that trains each."""
SHORT = (
    "prior.steps=150", "adaptation.steps=10", "target_training.epochs=8",
    "evaluator_training.epochs=8", "public_training.epochs=8",
)  # fmt: skip
"""Settings of the small version's audit."""
SCORED = 1000
"""Images that an audit of faces sends through LPIPS."""
CLASSIFIED = 500
"""Images that a classifier is trained on."""
CPU = torch.device("cpu")
Run = Callable[[int], object]


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--parts", default="load,choice", type=listed)
    arguments.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.measure:
        chooses = os.environ.get("OMP_WAIT_POLICY") == "PASSIVE"
        print(json.dumps(measured(options.small, chooses=chooses)))
        return
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    if "load" in options.parts:
        figures |= load(options)
    if "choice" in options.parts:
        found = {name: in_process(name, options.small) for name in ("default", "passive")}
        rows, compared = choice(found)
        figures |= compared
    seconds = [{"audit": k, "seconds": v} for k, v in figures.items() if k.endswith("_seconds")]
    finish("threads", figures, rows or seconds, options)


def environment() -> dict[str, str]:
    """Return the environment without what says how many threads there are and how they wait."""
    own = ("OMP_", "MKL_", "KMP_", "GOMP_")
    source = str(Path(__file__).resolve().parents[1] / "src")
    return {k: v for k, v in os.environ.items() if not k.startswith(own)} | {"PYTHONPATH": source}


def load(options: Any) -> dict[str, float]:
    """Return the seconds of an audit alone and beside busy processes, and their ratio."""
    given = [f"--set={one}" for one in SHORT] if options.small else []
    seconds: dict[str, float] = {}
    for name, processes in (("quiet", 0), ("contended", 2)):
        with two_cores(), busy(processes), tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            command = [sys.executable, "-m", "inversight", "audit", "--shadows", "0"]
            command += ["--seed", str(options.seed), "--out", str(out), *given]
            begun = time.perf_counter()
            subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL)
            seconds[name] = time.perf_counter() - begun
            manifest = json.loads((out / "run.json").read_text())
            print(f"{name}: {seconds[name]:.0f} s, threads {manifest['stage_threads']}", flush=True)
    return {
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "contended_over_quiet": seconds["contended"] / seconds["quiet"],
    }


@contextmanager
def two_cores() -> Iterator[None]:
    """Let processes that are started in the block use two cores, where the system can say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:2])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Compute without pause in ``count`` other processes of one thread."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def in_process(waiting: str, small: bool) -> dict[str, Any]:
    """Return what :func:`measured` finds in a process whose threads wait in this way."""
    own = environment() | ({"OMP_WAIT_POLICY": "PASSIVE"} if waiting == "passive" else {})
    command = [sys.executable, __file__, "--measure", *(["--small"] if small else [])]
    print(f"threads that wait as {waiting}", flush=True)
    done = subprocess.run(command, env=own, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(small: bool, *, chooses: bool) -> dict[str, Any]:
    """Return for each kind of work the seconds of a step by number of threads, and what a trial chooses."""
    found: dict[str, Any] = {}
    most = usable_threads()
    numbers = sorted({most, *(2**k for k in range(most.bit_length()) if 2**k <= most)})
    for kind, (run, steps, whole) in kinds(small).items():
        seconds = dict.fromkeys(numbers, float("inf"))
        for repeat in range(2 if small else 4):
            for number in numbers:
                with using_threads(number):
                    if repeat == 0:
                        run(1)
                    begun = time.perf_counter()
                    run(steps)
                    seconds[number] = min(seconds[number], (time.perf_counter() - begun) / steps)
        found[kind] = {"seconds": seconds}
        if chooses:
            trials = ThreadTrials(most)
            begun = time.perf_counter()
            trials.seconds(kind, lambda: whole * seconds_per_step(run))  # noqa: B023
            chosen = trials.fastest[kind]
            found[kind] |= {"chosen": chosen, "trial": time.perf_counter() - begun}
            found[kind]["whole"] = whole * seconds[chosen]
        print(kind, found[kind], file=sys.stderr, flush=True)
    return found


def kinds(small: bool) -> dict[str, tuple[Run, int, int]]:
    """Return what is measured: work of n steps, steps of a measurement, and steps in an audit."""
    found: dict[str, tuple[Run, int, int]] = {}
    for size, preset in list(PRIORS.items())[: 2 if small else None]:
        training = prior_training_of(size, preset)
        found[f"prior {size}"] = (prior_steps(size, training), max(2, 128 // size), training.steps)
    images = random_images(32, 256)
    labels = torch.arange(len(images)) % 10
    names = tuple(map(str, range(len(images))))
    few = ImageSet(images, labels, names, tuple("0123456789"), names)
    recipe = replace(Training(), validation=0.0)

    def classify(epochs: int) -> object:
        return train_classifier(
            few, training=replace(recipe, epochs=epochs), image_shape=(3, 32, 32), rng=generator(0)
        )

    epochs = recipe.epochs_for(CLASSIFIED) * CLASSIFIED // len(few)
    found["classifier"] = (classify, 2, epochs)
    lpips = Lpips("vgg", size=32, backbone=random_backbone("vgg", generator(0)))
    one = torch.rand(lpips.batch_size(CPU), 3, 32, 32)

    @torch.no_grad()
    def embed(steps: int) -> object:
        return [lpips(one) for _ in range(steps)]

    found["LPIPS"] = (embed, 10, SCORED // len(one))
    return found


def prior_training_of(size: int, preset: str) -> PriorTraining:
    """Return how an audit with this preset trains a prior for images of ``size`` pixels; 8: the digits."""
    budget = stage_budgets(preset, digits=size == 8)["prior"]
    return resolve_prior_training(budget, size=size)


def prior_steps(size: int, training: PriorTraining) -> Run:
    """Return the training of a prior by its number of steps."""
    images = random_images(size, 200, channels=1 if size == 8 else 3)

    def train(steps: int) -> object:
        return train_prior(images, training=replace(training, steps=steps), rng=generator(0))

    return train


def random_images(size: int, count: int, channels: int = 3) -> torch.Tensor:
    """Return uint8 images (N, C, S, S)."""
    shape = (count, channels, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0))


def choice(found: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a row for each kind of work, and the figures."""
    rows, figures = [], {}
    for kind, ours in found["passive"].items():
        default = found["default"][kind]["seconds"]
        seconds, chosen = ours["seconds"], str(ours["chosen"])
        most = max(seconds, key=int)
        rows.append(
            {
                "work": kind,
                **{f"s ({n} threads)": s for n, s in seconds.items()},
                **{f"s ({n}, spinning)": s for n, s in default.items()},
                "chosen": chosen,
                "ours over best": seconds[chosen] / min(seconds.values()),
                "passive over default": seconds[most] / default[most],
                "trial (s)": ours["trial"],
                "whole (s)": ours["whole"],
            }
        )
        name = kind.lower().replace(" ", "_")
        figures[f"ours_over_best_{name}"] = rows[-1]["ours over best"]
        figures[f"passive_over_default_{name}"] = rows[-1]["passive over default"]
    for name in ("ours over best", "passive over default"):
        figures[name.replace(" ", "_")] = max(row[name] for row in rows)
    return rows, figures


if __name__ == "__main__":
    main()
