"""Does an audit choose the fastest number of threads, and does it bear other processes beside it?

uv run python benchmarks/threads.py            at most eight minutes on two quiet cores
uv run python benchmarks/threads.py --small    shorter trainings, no prior of 64x64, about three minutes
uv run python benchmarks/threads.py --parts load,choice

Only on a machine with nothing else on it. Two parts:

load     an audit of the digits with a shorter training of the prior and without shadow models, from the command
         line, alone and beside two processes that compute without pause, all on the same two cores
choice   training steps of priors and of a classifier, and LPIPS features, with 1, 2, 4, ... threads in turn,
         and the number that the trial of an audit chooses; with waiting threads that soon sleep, as the command
         line has them, and with PyTorch's default, where they spin

contended_over_quiet   time of the audit beside two busy processes, over that alone
ours_over_best         time with the chosen number of threads over that with the best, the largest of the kinds
passive_over_default   time of threads that soon sleep over that of spinning ones with as many threads as cores,
                       the largest of the kinds
trial_over_whole       time of the estimate with its trials over that of the work, the largest of the kinds
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
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common import finish, listed, parser
from inversight.cli.launch import WAITING
from inversight.core.seeding import generator
from inversight.core.threads import ThreadTrials, usable_threads, using_threads
from inversight.data import ImageSet
from inversight.embeddings.lpips import Lpips, random_backbone
from inversight.models.training import train_classifier
from inversight.pipeline.timing import seconds_per_step, training_seconds
from inversight.priors import train_prior
from inversight.settings import PriorTraining, Training, resolve_prior_training, stage_budgets

PRIORS: dict[int, str] = {8: "quick", 32: "quick", 64: "standard"}
"""Image sizes of priors, and the preset that trains each."""
AUDITS: dict[str, tuple[int, int, int]] = {
    "whole": (400, 10, 8), "small": (150, 10, 8), "tiny": (10, 2, 1)
}  # fmt: skip
"""Steps of the prior and of the adaptation, and epochs of the classifiers, in the audit of each version."""
MOST_SECONDS = 15.0
"""Time after which a kind of work is not measured once more."""
SCORED = 1000
"""Images that an audit of faces sends through LPIPS."""
CLASSIFIED = 500
"""Images that a classifier is trained on."""
CPU = torch.device("cpu")
Run = Callable[[int], object]
Kind = tuple[Run, int, int, Callable[[], float]]
"""Work of n steps, the steps of a measurement and in an audit, and the audit's estimate of their seconds."""


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--parts", default="load,choice", type=listed)
    arguments.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    version = "tiny" if options.tiny else "small" if options.small else "whole"
    if options.measure:
        chooses = os.environ.get("OMP_WAIT_POLICY") == "PASSIVE"
        print(json.dumps(measured(version, chooses=chooses)))
        return
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    if "load" in options.parts:
        figures |= load(version, options.seed)
    if "choice" in options.parts:
        found = {name: in_process(name, version) for name in ("default", "passive")}
        rows, compared = choice(found)
        figures |= compared
    seconds = [{"audit": k, "seconds": v} for k, v in figures.items() if k.endswith("_seconds")]
    finish("threads", figures, rows or seconds, options)


def environment() -> dict[str, str]:
    """Return the environment without what says how many threads there are and how they wait."""
    own = ("OMP_", "MKL_", "KMP_", "GOMP_")
    source = str(Path(__file__).resolve().parents[1] / "src")
    return {k: v for k, v in os.environ.items() if not k.startswith(own)} | {"PYTHONPATH": source}


def load(version: str, seed: int) -> dict[str, float]:
    """Return the seconds of an audit alone and beside busy processes, and their ratio."""
    prior, adaptation, epochs = AUDITS[version]
    given = {"prior.steps": prior, "adaptation.steps": adaptation}
    given |= {f"{name}_training.epochs": epochs for name in ("target", "evaluator", "public")}
    seconds: dict[str, float] = {}
    for name, processes in (("quiet", 0), ("contended", 2)):
        with two_cores(), busy(processes), tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            command = [sys.executable, "-m", "inversight", "audit", "--shadows", "0"]
            command += ["--seed", str(seed), "--out", str(out)]
            command += [f"--set={key}={value}" for key, value in given.items()]
            begun = time.perf_counter()
            done = subprocess.run(command, env=environment(), capture_output=True, text=True)
            seconds[name] = time.perf_counter() - begun
            if done.returncode != 0:
                raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
            manifest = json.loads((out / "run.json").read_text())
            stages = {stage["name"]: round(stage["seconds"], 1) for stage in manifest["stages"]}
            print(f"{name}: {seconds[name]:.0f} s, stages {stages}", flush=True)
            print(f"  threads {manifest['stage_threads']}", flush=True)
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


def in_process(waiting: str, version: str) -> dict[str, Any]:
    """Return what :func:`measured` finds in a process whose threads wait in this way."""
    own = environment() | (WAITING if waiting == "passive" else {})
    size = [] if version == "whole" else [f"--{version}"]
    print(f"threads that wait as {waiting}", flush=True)
    command = [sys.executable, __file__, "--measure", *size]
    done = subprocess.run(command, env=own, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(version: str, *, chooses: bool) -> dict[str, Any]:
    """Return for each kind of work the seconds of a step by number of threads, and what a trial chooses."""
    found: dict[str, Any] = {}
    most = usable_threads()
    numbers = sorted({most, *(2**k for k in range(most.bit_length()) if 2**k <= most)})
    for kind, (run, steps, whole, estimate) in kinds(version).items():
        seconds = dict.fromkeys(numbers, float("inf"))
        started = time.perf_counter()
        for repeat in range({"whole": 4, "small": 2, "tiny": 1}[version]):
            if repeat >= 2 and time.perf_counter() - started > MOST_SECONDS:
                break
            for number in numbers:
                with using_threads(number):
                    if repeat == 0:
                        run(1)
                    begun = time.perf_counter()
                    run(steps)
                    seconds[number] = min(seconds[number], (time.perf_counter() - begun) / steps)
        found[kind] = {"seconds": seconds}
        if chooses:
            trials, begun = ThreadTrials(most), time.perf_counter()
            trials.seconds(kind, estimate)
            took, chosen = time.perf_counter() - begun, trials.fastest.get(kind, 1)
            found[kind] |= {"chosen": chosen, "trial": took, "whole": whole * seconds[chosen]}
        print(kind, found[kind], file=sys.stderr, flush=True)
    return found


def kinds(version: str) -> dict[str, Kind]:
    """Return what is measured."""
    found: dict[str, Kind] = {}
    for size, preset in list(PRIORS.items())[: {"whole": 3, "small": 2, "tiny": 1}[version]]:
        training = prior_training_of(size, preset)
        run = prior_steps(size, training)
        found[f"prior {size}"] = (
            run, max(1, 64 // size), training.steps, partial(steps_seconds, run, training.steps)
        )  # fmt: skip
    if version == "tiny":
        return found
    images = random_images(32, CLASSIFIED)
    labels = torch.arange(len(images)) % 10
    names = tuple(map(str, range(len(images))))
    private = ImageSet(images, labels, names, tuple("0123456789"), names)
    few = private.select(torch.arange(256))
    recipe, shape = replace(Training(), validation=0.0), (3, 32, 32)

    def classify(epochs: int) -> object:
        own = replace(recipe, epochs=epochs)
        return train_classifier(few, training=own, image_shape=shape, rng=generator(0))

    epochs = recipe.epochs_for(CLASSIFIED) * CLASSIFIED // len(few)
    estimate = partial(training_seconds, private, recipe, shape, CPU)
    found["classifier"] = (classify, 2, epochs, estimate)
    lpips = Lpips("vgg", size=32, backbone=random_backbone("vgg", generator(0)))
    batch = torch.rand(lpips.batch_size(CPU), *shape)

    @torch.no_grad()
    def embed(steps: int, images: torch.Tensor = batch) -> object:
        return [lpips(images) for _ in range(steps)]

    two = partial(embed, images=torch.rand(2, *shape))
    found["LPIPS"] = (embed, 20, SCORED // len(batch), partial(steps_seconds, two, SCORED // 2))
    return found


def steps_seconds(run: Run, steps: int) -> float:
    """Return the seconds of so many steps, as an audit estimates them."""
    return steps * seconds_per_step(run)


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
                "trial over whole": ours["trial"] / ours["whole"],
                "whole (s)": ours["whole"],
            }
        )
        name = kind.lower().replace(" ", "_")
        figures[f"ours_over_best_{name}"] = rows[-1]["ours over best"]
        figures[f"passive_over_default_{name}"] = rows[-1]["passive over default"]
    for name in ("ours over best", "passive over default", "trial over whole"):
        figures[name.replace(" ", "_")] = max(row[name] for row in rows)
    return rows, figures


if __name__ == "__main__":
    main()
