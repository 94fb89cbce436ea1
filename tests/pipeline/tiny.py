"""The smallest audit that runs every stage, its images, and a stand-in for a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from inversight import AuditResult
from inversight.core.console import Quiet
from inversight.core.progress import Progress
from inversight.core.seeding import generator
from inversight.pipeline.estimate import Estimate
from tests.examples import OwnNetwork

TINY: dict[str, Any] = {
    "shadows": 0,
    "embedding": "public",
    "features": "public",
    "guidance_embedding": "public",
    "prior": {"steps": 6, "batch_size": 4, "width": 2, "watch_images": 1000},
    "adaptation": {"steps": 4, "iterations": 2},
    "target_training": {"epochs": 3, "width": 2},
    "evaluator_training": {"epochs": 3, "width": 2},
    "public_training": {"epochs": 2, "width": 2},
    "attack": [
        {"class": "plug-and-play", "pool": 30, "candidates": 6, "keep": 4, "steps": 3, "crops": 2}
    ],
}
CHECKPOINTS = {**TINY["prior"], "checkpoint_seconds": 1e-6, "watch_images": 8}
"""The prior's settings with a checkpoint after every step, and a look at samples after two."""
BLACK_BOX = {
    "class": "mirror-black-box", "pool": 30, "population": 6, "generations": 2, "candidates": 4,
    "keep": 3, "crops": 2,
}  # fmt: skip
TWO = {**TINY, "attack": [{**TINY["attack"][0], "halvings": 0}, BLACK_BOX]}
"""A white-box and a black-box attack."""
SHADOWED: dict[str, Any] = {**TINY, "shadows": 8, "images": "full", "workers": 1}
"""With shadow models, in one process."""
TABLES = ("metrics.json", "samples.parquet", "signals.parquet", "holdout.parquet")


def class_folders(path: Path, seed: int, classes: tuple[str, ...], each: int, colour: bool) -> Path:
    """Squares at a place that belongs to the class, on noise."""
    rng = np.random.default_rng(seed)
    for position, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for i in range(each):
            values = rng.integers(0, 80, (8, 8, 3) if colour else (8, 8))
            values[2 * position : 2 * position + 3, 2:6] += 150
            Image.fromarray(values.astype(np.uint8)).save(path / name / f"{i}.png")
    return path


def image_folders(path: Path, colour: bool = False) -> dict[str, Path]:
    """Write private, holdout and public images of 8x8."""
    return {
        "private": class_folders(path / "private", 0, ("ann", "bob"), 6, colour),
        "holdout": class_folders(path / "holdout", 1, ("ann", "bob"), 5, colour),
        "public": class_folders(path / "public", 2, ("x", "y", "z"), 8, colour),
    }


def without_holdout(folders: dict[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in folders.items() if name != "holdout"}


def hashes(run: Path) -> dict[str, str]:
    """Return a hash of each table of ``run``."""
    return {t: hashlib.sha256((run / t).read_bytes()).hexdigest() for t in TABLES}


def read_result(run: Path) -> AuditResult:
    """What a finished audit in ``run`` returned."""
    metrics = json.loads((run / "metrics.json").read_text())
    warnings = json.loads((run / "run.json").read_text())["warnings"]
    return AuditResult(run, metrics, pd.read_parquet(run / "samples.parquet"), tuple(warnings))


@contextmanager
def without_trials() -> Iterator[None]:
    """Skip the trials from which an audit's time is estimated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inversight.pipeline.audit.estimate", lambda _: Estimate({}, 0, 0))
        yield


@contextmanager
def without_figures() -> Iterator[None]:
    """Leave the figures of reports empty: drawing takes a fifth of a tiny audit's time."""

    def savefig(figure: object, file: TextIO, **_: object) -> None:
        file.write("<svg></svg>")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inversight.report.figures.Figure.savefig", savefig)
        yield


class Stop(BaseException):
    """Stands for a kill: nothing catches it."""


@dataclass
class StopAt(Quiet):
    """Stops the audit in a stage, after so many of its steps."""

    name: str
    after: int

    def stage(self, name: str) -> Progress:
        def progress(done: int, total: int, note: str = "") -> None:
            if name == self.name and done >= self.after:
                raise Stop

        return progress


def own_target(folder: Path, classes: int = 2) -> str:
    """Return the specification of a linear target whose weights, of a fixed seed, are in ``folder``."""
    network = OwnNetwork(classes)
    network.linear.weight.data = torch.randn(classes, 64, generator=generator(1))
    save_file(network.state_dict(), folder / "own.safetensors")
    return f"tests.examples:own_network?weights={folder / 'own.safetensors'}"


def shared_file(folders: dict[str, Path]) -> dict[str, Any]:
    image = Image.open(folders["private"] / "ann" / "3.png")
    image.save(folders["public"] / "x" / "copy.bmp")  # another name and format, the same pixels
    return {"private": folders["private"], "public": folders["public"]}


SMALL_PRIOR = "--features none --set steps=4 --set batch_size=4 --set width=2"
SMALL_TRAINING = "--set epochs=3 --set width=2"
SMALL_ATTACK = "--set pool=20 --set candidates=4 --set keep=3 --set steps=2"
