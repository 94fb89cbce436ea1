"""Attacks that two processes share, in one of :mod:`tests.two_processes`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from inversight.attacks import (
    Attack,
    BrepMi,
    CmaEs,
    MiFace,
    PlugAndPlay,
    Reconstructions,
    gather,
    run_assigned,
)
from inversight.core.errors import InputError, InversightError
from inversight.core.processes import ALONE, Processes
from inversight.core.progress import Progress, silent
from inversight.core.seeding import generator
from inversight.models.target import Access, Target
from tests.attacks.toy import FlatPrior, NearestByLayer, toy_target


class WithoutLast(NearestByLayer):
    """Puts nothing in the last of three classes."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        logits[:, 2] = -9.0
        return logits


@dataclass(frozen=True)
class Failing:
    """Fails where it is given the last class."""

    error: Exception
    access: Access = Access.SCORES

    def run(
        self, target: Target, prior: object, labels: Tensor, *, rng: torch.Generator,
        progress: Progress = silent,
    ) -> Reconstructions:  # fmt: skip
        if 2 in labels.tolist():
            raise self.error
        return Reconstructions(torch.zeros(0, 1, 8, 8), labels[:0], torch.zeros(0), torch.zeros(0))


CROPS = dict(keep=2, crops=3)
CASES: dict[str, tuple[Attack, nn.Module, list[int]]] = {
    "uneven": (
        PlugAndPlay(pool=30, candidates=4, steps=4, learning_rate=0.05, **CROPS),
        NearestByLayer(), [0, 1, 2],
    ),
    "more-processes-than-classes": (
        CmaEs(pool=30, searches=3, population=4, generations=4, **CROPS), NearestByLayer(), [1]
    ),
    "joint": (MiFace(candidates=3, steps=4, group=4, **CROPS), NearestByLayer(), [0, 1, 2]),
    "a-class-without-samples": (
        BrepMi(pool=60, pools=3, searches=3, iterations=3, keep=2), WithoutLast(), [0, 1, 2]
    ),
    "no-samples-at-all": (
        BrepMi(pool=60, pools=3, searches=3, iterations=3, keep=2), WithoutLast(), [2]
    ),
    "wrong-input-of-one": (Failing(InputError("a wrong thing")), NearestByLayer(), [0, 1, 2]),
    "error-of-one": (Failing(KeyError("odd")), NearestByLayer(), [0, 1, 2]),
}  # fmt: skip


def attacked(name: str, processes: Processes = ALONE) -> Reconstructions | None:
    attack, module, labels = CASES[name]
    with processes.together():
        part = run_assigned(
            attack, toy_target(module), FlatPrior(), torch.tensor(labels),
            processes=processes, rng=generator(3),
        )  # fmt: skip
    return gather(part, processes)


def main(out: Path, processes: Processes) -> None:
    """Attack in each way, and write reconstructions, or errors, and how many images were sent to ``out``."""
    ends = {}
    for name, (_, module, _) in CASES.items():
        try:
            found = attacked(name, processes)
            ends[name] = ["main" if found is not None else "other"]
        except (InversightError, KeyError) as error:
            found, ends[name] = None, [type(error).__name__, str(error)]
        if found is not None:
            assert found.queries is not None
            tensors = {k: v for k, v in vars(found).items() if isinstance(v, Tensor)}
            counted = {"queries": torch.tensor(found.queries)}
            save_file({**tensors, **counted}, out / f"{name}.safetensors")
        ends[name].append(module.images)  # type: ignore[arg-type]
    (out / f"attacks-{processes.index}.json").write_text(json.dumps(ends))
