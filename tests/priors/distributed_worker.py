"""One of two processes that train a prior together; run by ``test_processes``.

``python -m tests.priors.distributed_worker OUT``, with the environment that torchrun or ``accelerate launch``
gives. Each process writes what it ends with, so that the test can compare.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from inversight.core.processes import ALONE, Processes, launched
from inversight.core.seeding import generator
from inversight.priors.architecture import architecture_of
from inversight.priors.game import Game
from inversight.priors.training import run_game
from inversight.settings import PriorTraining
from tests.priors.fixed_guidance import FixedGuidance

SHAPE = (1, 8, 8)
PUBLIC = torch.randint(0, 256, (20, *SHAPE), generator=generator(7)).to(torch.uint8)
TRAINING = PriorTraining(
    batch_size=16,
    images_at_once=4,
    width=2,
    z_dim=6,
    w_dim=5,
    r1_interval=2,
    path_length=2.0,
    path_length_interval=2,
    mixing=0.5,
    ada_images=400.0,
    checkpoint_seconds=1e-9,
)
STEPS = 6


class Brighten(FixedGuidance):
    """Guidance with a memory, as the target's has: a running mean of what it is told."""

    def __init__(self) -> None:
        super().__init__(lambda images: -images)

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


def play(
    folder: Path,
    processes: Processes = ALONE,
    *,
    stop: int | None = None,
    classes: bool = False,
    second: bool = False,
) -> Game | None:
    """The game after all steps, conditioned on ``classes`` or not, with a ``second`` discriminator or
    without; None if it was stopped at ``stop``."""

    class Stop(Exception):
        pass

    def progress(done: int, total: int, note: str = "") -> None:
        if done == stop:
            raise Stop

    architecture = architecture_of(SHAPE, TRAINING)
    if classes:
        architecture = replace(architecture, c_dim=3, mapping_rate=3.0, cmap_depth=0)
    game = Game(
        image_shape=SHAPE, training=TRAINING, architecture=architecture, processes=processes
    )
    guidance = Brighten()
    if second:
        guidance.second = Positions()
    try:
        run_game(
            game,
            PUBLIC,
            class_labels=torch.eye(3)[torch.arange(len(PUBLIC)) % 3] if classes else None,
            steps=STEPS,
            rng=generator(3),
            guidance=guidance,
            fresh=True,
            progress=progress,
            checkpoint=folder / "checkpoint.safetensors",
        )
    except Stop:
        return None
    return game


def state(game: Game) -> dict[str, Tensor]:
    """All tensors of a game, and what else it remembers."""
    modules = {"g": game.generator, "a": game.average, "d": game.discriminator}
    if game.second is not None:
        modules["second"] = game.second.module
    found = {f"{n}.{k}": v.clone() for n, m in modules.items() for k, v in m.state_dict().items()}
    control = game.control
    found["memory"] = torch.tensor([game.path_length.mean, control.p, control.signs, control.seen])
    return {k: v.contiguous() for k, v in found.items()}


def main(out: Path) -> None:
    """Play to the end with a second discriminator, once without a stop, once with one; then with classes."""
    processes = launched("cpu")
    for stop in (None, 4):
        folder = out / f"stop-{stop}"
        if processes.main:
            folder.mkdir()
        processes.wait()
        game = play(folder, processes, stop=stop, second=True)
        if game is None:
            processes.wait()
            game = play(folder, processes, second=True)
        assert game is not None
        save_file(state(game), folder / f"{processes.index}.safetensors")
    game = play(out, processes, classes=True)
    assert game is not None
    save_file(state(game), out / f"classes-{processes.index}.safetensors")
    processes.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
