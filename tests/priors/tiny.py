"""The smallest trainings of a prior, its targets and images, for tests of priors and of their adaptation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from inversight.adaptation import adapt
from inversight.core.processes import Processes
from inversight.core.progress import Progress, silent
from inversight.core.seeding import generator
from inversight.embeddings.pixel import Pixel
from inversight.models.target import Target
from inversight.priors import StylePrior, train_prior
from inversight.priors.architecture import architecture_of
from inversight.priors.game import Game, Microbatch
from inversight.priors.guidance import GeneratedBatch, SecondDiscriminator
from inversight.priors.stylegan2 import initialise
from inversight.priors.training import run_game
from inversight.settings import Adaptation, PriorTraining

SHAPE = (1, 8, 8)
PUBLIC = torch.randint(0, 256, (24, *SHAPE), generator=generator(0)).to(torch.uint8)
REAL = PUBLIC.float() / 127.5 - 1.0
TRAINING = PriorTraining(steps=10, batch_size=8, width=2, z_dim=6, w_dim=5)
PUBLISHED: dict[str, Any] = {
    "mixing": 0.9, "path_length": 2.0, "path_length_interval": 2, "penalty_steps": True,
    "augment_filter": True, "ema_rampup": None, "noise": True, "images_at_once": 2,
}  # fmt: skip
"""What published configurations switch on, at a size that a test can afford."""
METRIC = Pixel(SHAPE[1:])


@cache
def trained() -> StylePrior:
    """A prior for images of ``SHAPE``, not to be changed."""
    return train_prior(PUBLIC, training=TRAINING, rng=generator(1))


def tiny(**changes: Any) -> PriorTraining:
    """Settings of a training of 6 steps with every penalty that is on by default."""
    base = {"steps": 6, "batch_size": 4, "r1_interval": 2, "ada_images": 40.0}
    return replace(TRAINING, **(base | changes))


def new_game(kind: type[Game] = Game, **changes: Any) -> Game:
    """A game whose networks :func:`play` initialises."""
    training = tiny(**changes)
    return kind(architecture_of(SHAPE, training), training)


def fresh_game(kind: type[Game] = Game, **changes: Any) -> Game:
    """A game of networks with random weights."""
    game = new_game(kind, **changes)
    initialise(game.generator, generator(1))
    initialise(game.discriminator, generator(2))
    game.average.load_state_dict(game.generator.state_dict())
    return game


def play(
    game: Game, public: Tensor = PUBLIC, *, steps: int = 6, fresh: bool = True, **options: Any
) -> list[dict[str, float]]:
    """Train ``game``, from new weights if ``fresh``, and return its log."""
    return run_game(game, public, steps=steps, rng=generator(0), fresh=fresh, **options)


def batch(*seed: int, images: Tensor = REAL[:4], labels: Tensor | None = None) -> list[Microbatch]:
    """A batch of one microbatch, whose draws belong to ``seed``."""
    return [Microbatch(images, generator(*seed), labels)]


def state(game: Game) -> dict[str, Tensor]:
    """All tensors of a game, and the numbers that its checkpoints hold."""
    networks = game.networks.items()
    found = {f"{n}.{k}": v.clone() for n, m in networks for k, v in m.state_dict().items()}
    control = game.control
    found["memory"] = torch.tensor([game.path_length.mean, control.p, control.signs, control.seen])
    return {k: v.contiguous() for k, v in found.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], **tolerance: float) -> None:
    """Check that both hold the same names and values, bit by bit without a tolerance."""
    torch.testing.assert_close(one, other, **(tolerance or {"rtol": 0, "atol": 0}))


def assert_equal(one: StylePrior, other: StylePrior) -> None:
    """Check that two priors have the same networks, pivots and log, bit by bit."""
    for name in ("raw", "average", "critic"):
        assert_same(getattr(one, name).state_dict(), getattr(other, name).state_dict())
    assert one.log == other.log and (one.pivots is None) == (other.pivots is None)
    assert one.pivots is None or torch.equal(one.pivots, other.pivots)  # type: ignore[arg-type]


def one_of(count: int, index: int, **more: Any) -> Processes:
    """A process that knows of others, and cannot reach them; ``more`` are accelerate's further parts."""
    cpu = torch.device("cpu")
    return Processes(SimpleNamespace(num_processes=count, process_index=index, device=cpu, **more))


class Stopped(Exception):
    """Stands for an interruption."""


def stop_at(step: int) -> Progress:
    """A progress that raises :class:`Stopped` at ``step``."""

    def progress(done: int, total: int, note: str = "") -> None:
        if done == step:
            raise Stopped

    return progress


class Record(list[tuple[int, int]]):
    """A progress that collects (done, total) of each call, and the notes."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def __call__(self, done: int, total: int, note: str = "") -> None:
        self.append((done, total))
        self.notes.append(note)


class FixedGuidance:
    """A guidance of one gradient, ``pull(images)``, times ``times``; records its calls."""

    def __init__(self, pull: Callable[[Tensor], Tensor], times: float = 1.0) -> None:
        self.state: dict[str, float] = {}
        self.logged: dict[str, float] = {}
        self.second: SecondDiscriminator | None = None
        self.pull = pull
        self.times = times
        self.seen: list[Tensor] = []
        self.batches: list[GeneratedBatch] = []
        self.measured: list[tuple[float, float]] = []

    def __call__(self, images: Tensor, batch: GeneratedBatch) -> dict[str, Tensor]:
        self.seen.append(images)
        self.batches.append(batch)
        return {"pull": self.pull(images)}

    def due(self, step: int) -> bool:
        return True

    def measure(self, gan: float, terms: Mapping[str, float]) -> None:
        self.measured.append((gan, terms["pull"]))

    def factor(self, name: str) -> float:
        return self.times


def linear_target(seed: int) -> Target:
    """Three classes by a random linear map of the pixels."""
    linear = nn.Linear(64, 3, bias=False)
    linear.weight.data = torch.randn(3, 64, generator=generator(seed)) * 0.2
    return _target(nn.Sequential(nn.Flatten(), linear))


def convolved(*layers: nn.Module, seed: int = 0) -> Target:
    """Three classes by these layers, with random weights."""
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3)).eval()
    with torch.no_grad():
        module(torch.zeros(1, *SHAPE))
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(seed)) * 0.3)
    return _target(module)


def deep(seed: int = 0) -> Target:
    """Three classes by nine convolutions."""
    layers: Iterable[nn.Module] = (nn.Conv2d(4 if i else 1, 4, 3, padding=1) for i in range(9))
    return convolved(*layers, seed=seed)


def _target(module: nn.Module) -> Target:
    return Target(module.requires_grad_(False), ("a", "b", "c"), SHAPE, (0.5,), (0.5,), "test")


def adapted(
    prior: StylePrior, target: Target, arm: str, *, public: Tensor = PUBLIC,
    training: PriorTraining = TRAINING, progress: Progress = silent, checkpoint: Path | None = None,
    **changes: Any,
) -> StylePrior:  # fmt: skip
    """Adapt ``prior`` in 5 steps; ``changes`` are settings of the adaptation."""
    return adapt(
        prior, target, public, arm=arm, training=training, metric=METRIC, rng=generator(2),
        adaptation=Adaptation(**({"steps": 5, "iterations": 2} | changes)), progress=progress,
        checkpoint=checkpoint,
    )  # fmt: skip


def pictures(prior: StylePrior) -> Tensor:
    """Images of 64 latents by the generator that training continues with, in [-1, 1]."""
    return prior.raw(prior.sample(64, rng=generator(9)))
