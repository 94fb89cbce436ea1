"""A training that two processes share, in one of :mod:`tests.two_processes`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.core.processes import ALONE, Processes
from inversight.core.progress import Progress, silent
from inversight.core.seeding import generator
from inversight.priors.architecture import architecture_of
from inversight.priors.game import Game
from tests.priors.tiny import PUBLIC, SHAPE, FixedGuidance, Stopped, play, state, stop_at, tiny

TRAINING = tiny(
    batch_size=8, images_at_once=2, path_length=2.0, path_length_interval=2, mixing=0.5,
    ada_images=400.0, checkpoint_seconds=1e-9,
)  # fmt: skip
STEPS = 4
LABELS = F.one_hot(torch.arange(len(PUBLIC)) % 3, 3).float()


class Brighten(FixedGuidance):
    """Guidance with a state, as the target's has: a running mean of what it measures."""

    def __init__(self) -> None:
        super().__init__(lambda images: -images)
        self.second = Positions()

    def measure(self, gan: float, terms: Mapping[str, float]) -> None:
        level = gan / max(terms["pull"], 1e-20)
        self.state["level"] = 0.9 * self.state.get("level", level) + 0.1 * level

    def factor(self, name: str) -> float:
        return self.state["level"]


class Positions:
    """A second discriminator that judges positions by one convolution, and counts its steps."""

    learning_rate = 1e-2

    def __init__(self) -> None:
        self.module = nn.Conv2d(1, 1, 3)
        self.settled = 0
        with torch.no_grad():
            self.module.weight.copy_(torch.randn(1, 1, 3, 3, generator=generator(11)))
            self.module.bias.zero_()  # type: ignore[union-attr]

    def loss(self, real: Tensor, fake: Tensor) -> Tensor:
        on_real, on_fake = self.module(real), self.module(fake)
        return (1.0 - on_real).relu().mean() + (1.0 + on_fake).relu().mean()

    def settle(self) -> None:
        self.settled += 1


def conditional_game(
    folder: Path, processes: Processes = ALONE, progress: Progress = silent
) -> Game:
    """Train a game with classes, guidance and a second discriminator; checkpoints are in ``folder``."""
    architecture = architecture_of(SHAPE, TRAINING)
    architecture = replace(architecture, c_dim=3, mapping_rate=3.0, cmap_depth=0)
    game = Game(architecture, TRAINING, processes=processes)
    play(
        game, steps=STEPS, class_labels=LABELS, guidance=Brighten(), progress=progress,
        checkpoint=folder / "checkpoint.safetensors",
    )  # fmt: skip
    return game


def main(out: Path, processes: Processes) -> None:
    """Train once without a stop, and once with one; write the states to ``out``."""
    for name, stop in (("whole", 0), ("resumed", 3)):
        (out / name).mkdir(exist_ok=True)
        with suppress(Stopped):
            game = conditional_game(out / name, processes, stop_at(stop))
        if stop:
            game = conditional_game(out / name, processes)
        save_file(state(game), out / f"{name}-{processes.index}.safetensors")
