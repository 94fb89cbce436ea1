"""Plays the adversarial game to its end: trains a prior, and goes on with it in the adaptation.

All randomness derives from (seed, step, microbatch of the batch), so a game resumed from a checkpoint goes
on bit by bit, whoever works on which microbatch. What has to be told on the way is told: losses, images
seen, samples and their distance from the public images.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from torch import Tensor

from inversight.core.errors import StageError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import draw_seed, generator
from inversight.priors.game import Game, ImageGuidance, Microbatch
from inversight.priors.monitor import SampleMonitor
from inversight.priors.stylegan2 import initialise


def run_game(
    game: Game,
    public: Tensor,
    *,
    class_labels: Tensor | None = None,
    steps: int,
    rng: torch.Generator,
    guidance: ImageGuidance | None = None,
    progress: Progress = silent,
    checkpoint: Path | None = None,
    fresh: bool = False,
    monitor: SampleMonitor | None = None,
) -> list[dict[str, float]]:
    """Play until ``steps`` steps are done; the log has a row for about every hundredth of them.

    ``fresh`` draws initial weights. ``public`` is uint8 (N, C, S, S), ``class_labels`` (N, K) what is
    known of the classes of each, as :class:`Microbatch` has it. ``monitor``
    looks at the samples as it goes. Of several processes only the first writes.

    Raises:
        ValueError: ``class_labels`` is not one row an image with a number for each class.
        StageError: the loss or the networks stopped being numbers; the last good checkpoint stays.
        DataError: the checkpoint is not one of this game.
    """
    training, main = game.training, game.processes.main
    _check_labels(game, public, class_labels)
    seed = draw_seed(rng)
    if fresh:
        initialise(game.generator, generator(seed, "generator"))
        initialise(game.discriminator, generator(seed, "discriminator"))
        game.average.load_state_dict(game.generator.state_dict())
    log: list[dict[str, float]] = []
    state: dict[str, float] = guidance.state if guidance is not None else {}
    if guidance is not None and guidance.second is not None:
        game.accompany(guidance.second)
    if checkpoint is not None and checkpoint.is_file():
        extra = game.load(checkpoint)
        log = extra["log"]
        state.update(extra["guidance"])
    game.processes.wait()  # nobody writes a checkpoint before all have read theirs
    looks = _Looks(game, steps, monitor if main else None)
    looks.at_start()
    data = public.to(game.device)
    known = None if class_labels is None else class_labels.to(game.device)
    saved = time.monotonic()
    every = max(1, steps // 100)
    while game.done < steps:
        row = game.step_on(_shares(game, data, known, seed), guidance)
        if not all(math.isfinite(v) for v in row.values()):
            raise _diverged(game, "the loss is not a number", checkpoint)
        if game.done % every == 0 or game.done == steps:
            log.append({"step": game.done, **row, **(guidance.logged if guidance else {})})
        looks.after_step(row)
        progress(game.done, steps, looks.note(row))
        due = time.monotonic() - saved > training.checkpoint_seconds and game.done < steps
        if checkpoint is not None and main and due:
            # Gradients can overflow while the loss does not: what is kept must be good.
            if not game.is_finite:
                raise _diverged(game, "the networks hold NaN or infinity", checkpoint)
            game.save(checkpoint, {"log": log, "guidance": state})
            saved = time.monotonic()
    if not game.is_finite:
        raise _diverged(game, "the networks hold NaN or infinity", checkpoint)
    return log


def _check_labels(game: Game, public: Tensor, class_labels: Tensor | None) -> None:
    architecture = game.discriminator.architecture
    if class_labels is None:
        if architecture.c_dim > 0:
            raise ValueError(
                f"a game conditioned on {architecture.c_dim} classes needs the public images' classes"
            )
        return
    expected = (len(public), architecture.c_dim or architecture.critic_classes)
    if tuple(class_labels.shape) != expected:
        raise ValueError(f"expected class_labels {expected}, found {tuple(class_labels.shape)}")


def _shares(game: Game, data: Tensor, known: Tensor | None, seed: int) -> list[Microbatch]:
    """This process's microbatches of the next batch: real images, what is known of them, and randomness."""
    count = game.training.batch_size // game.at_once
    own = count // game.processes.count
    first = own * game.processes.index
    microbatches = []
    for number in range(first, first + own):
        rng = generator(seed, game.done, *([number] if count > 1 else []))
        index = torch.randint(len(data), (game.at_once,), generator=rng)
        index = index.to(game.device)
        real = data[index].float() / 127.5 - 1.0
        microbatches.append(Microbatch(real, rng, None if known is None else known[index]))
    return microbatches


class _Looks:
    """When a game is looked at, and what it last looked like."""

    def __init__(self, game: Game, steps: int, monitor: SampleMonitor | None) -> None:
        self.game = game
        self.monitor = monitor
        self.steps = steps
        total = steps * game.training.batch_size
        self.every = game.training.watch_images or max(1, total // 10)
        self.distance: float | None = None

    @property
    def images(self) -> int:
        """Real images that the game has seen."""
        return self.game.done * self.game.training.batch_size

    def at_start(self) -> None:
        if self.game.done == 0:
            self._look({})

    def after_step(self, row: dict[str, float]) -> None:
        before = self.images - self.game.training.batch_size
        if self.images // self.every > before // self.every or self.game.done == self.steps:
            self._look(row)

    def note(self, row: dict[str, float]) -> str:
        """What the person who waits is told."""
        told = (
            f"{_short(self.images)} images, G {row['generator']:.2f} D {row['discriminator']:.2f}"
        )
        return told if self.distance is None else f"{told}, Frechet {self.distance:.3g}"

    def _look(self, row: dict[str, float]) -> None:
        if self.monitor is not None:
            self.distance = self.monitor.record(
                self.game.samples, images=self.images, every=self.every, facts=row
            )


def _short(images: int) -> str:
    """'960', '64.0k', '25.0M'."""
    if images < 1000:
        return str(images)
    return f"{images / 1e3:.1f}k" if images < 1_000_000 else f"{images / 1e6:.1f}M"


def _diverged(game: Game, why: str, checkpoint: Path | None) -> StageError:
    return StageError(
        f"the adversarial game diverged at step {game.done} ({why}): lower prior.learning_rate or "
        f"raise prior.r1{_kept(checkpoint)}"
    )


def _kept(checkpoint: Path | None) -> str:
    if checkpoint is None or not checkpoint.is_file():
        return ""
    return f"; the last good state is in {checkpoint}, from where the same command goes on"
