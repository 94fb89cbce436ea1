"""Trains a prior by the adversarial game, and continues the training in the adaptation.

All random numbers derive from (seed, step, microbatch). So a training resumed from a checkpoint gives the
same bits as an uninterrupted one, and so does any division of the microbatches among processes.
"""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from inversight.core.errors import StageError
from inversight.core.processes import ALONE, Processes
from inversight.core.progress import Figures, Progress, silent
from inversight.core.seeding import draw_seed, generator
from inversight.priors.architecture import architecture_of
from inversight.priors.game import Game, Microbatch
from inversight.priors.guidance import ImageGuidance
from inversight.priors.monitor import SampleMonitor
from inversight.priors.style_prior import StylePrior
from inversight.priors.stylegan2 import initialise
from inversight.settings import PriorTraining

_NOT_FINITE = "the networks hold NaN or infinity"


def untrained_prior(image_shape: tuple[int, int, int]) -> StylePrior:
    """Return a very small, untrained prior for images (C, S, S), to check what can be done with one.

    Raises:
        ConfigError: S is not a power of two in 8..1024.
    """
    training = PriorTraining(width=1, z_dim=4, w_dim=4, mapping_depth=1)
    game = Game(architecture_of(image_shape, training), training)
    for network in (game.generator, game.discriminator):
        initialise(network, generator(0))
    return game.prior()


def train_prior(
    public: Tensor, *, training: PriorTraining, rng: torch.Generator, progress: Progress = silent,
    checkpoint: Path | None = None, device: torch.device | str = "cpu",
    monitor: SampleMonitor | None = None, processes: Processes = ALONE,
) -> StylePrior:  # fmt: skip
    """Train a prior on public images, uint8 (N, C, S, S), where S is a power of two in 8..1024.

    With several ``processes``, each calls this with the same arguments and gets the same prior.

    Raises:
        ConfigError: another S, or a batch that cannot be divided equally.
        StageError: the training diverged.
    """
    architecture = architecture_of(public.shape[1:], training)
    game = Game(architecture, training, device=device, processes=processes)
    log = run_game(
        game, public, steps=training.steps, rng=rng, progress=progress, checkpoint=checkpoint,
        fresh=True, monitor=monitor,
    )  # fmt: skip
    return game.prior(log)


def continue_training(
    public: Tensor, *, training: PriorTraining, start: StylePrior, class_labels: Tensor | None = None,
    steps: int, learning_rate_factor: float, guidance: ImageGuidance | None, rng: torch.Generator,
    uniform_latents: bool = False, progress: Progress = silent, checkpoint: Path | None = None,
    monitor: SampleMonitor | None = None, processes: Processes = ALONE,
) -> StylePrior:  # fmt: skip
    """Continue the training of ``start`` for ``steps`` steps, with or without guidance.

    ``class_labels`` (N, K): class weights of the public images for a conditional prior, soft labels for a
    prior whose critic has class logits. ``uniform_latents``: draw z from [0, 1) instead of N(0, I).

    Raises:
        StageError: the training diverged.
    """
    game = Game(
        start.raw.architecture, training, learning_rate_factor=learning_rate_factor,
        uniform_latents=uniform_latents, device=next(start.raw.parameters()).device,
        processes=processes,
    )  # fmt: skip
    game.start_from(start)
    log = run_game(
        game, public, class_labels=class_labels, steps=steps, rng=rng, guidance=guidance,
        progress=progress, checkpoint=checkpoint, monitor=monitor,
    )  # fmt: skip
    return game.prior(log)


def run_game(
    game: Game, public: Tensor, *, class_labels: Tensor | None = None, steps: int,
    rng: torch.Generator, guidance: ImageGuidance | None = None, progress: Progress = silent,
    checkpoint: Path | None = None, fresh: bool = False, monitor: SampleMonitor | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """Train until ``steps`` steps are done.

    Args:
        game: the networks. With several processes only the first writes files.
        public: uint8 images (N, C, S, S).
        class_labels: (N, K), labels of the images as :class:`Microbatch` has them.
        steps: number of steps, including those that a checkpoint has done.
        rng: gives the seed of all random draws.
        guidance: what is added to the gradients on generated images.
        progress: called after each step.
        checkpoint: file to save the state to at intervals, and to resume from if it exists.
        fresh: whether to draw initial weights.
        monitor: records samples during the training.

    Returns:
        The log, with a row for about every hundredth of the steps.

    Raises:
        ValueError: ``class_labels`` has not this shape, or a conditional game has none.
        StageError: the loss or the networks are not finite; the last good checkpoint is kept.
        DataError: the checkpoint is of another training.
    """
    training, main = game.training, game.processes.main
    _check_labels(game, public, class_labels)
    check = partial(
        require_finite, what="the adversarial game", checkpoint=checkpoint,
        remedy="lower prior.learning_rate or raise prior.r1",
    )  # fmt: skip
    seed = draw_seed(rng)
    if fresh:
        initialise(game.generator, generator(seed, "generator"))
        initialise(game.discriminator, generator(seed, "discriminator"))
        game.average.load_state_dict(game.generator.state_dict())
    log: list[dict[str, float]] = []
    state: dict[str, float] = guidance.state if guidance is not None else {}
    if guidance is not None and guidance.second is not None:
        game.add_discriminator(guidance.second)
    if checkpoint is not None and checkpoint.is_file():
        extra = game.load(checkpoint)
        log = extra["log"]
        state.update(extra["guidance"])
    game.processes.wait()  # nobody writes a checkpoint before all have read theirs
    data = public.to(game.device)
    labels = None if class_labels is None else class_labels.to(game.device)
    between = training.watch_images or max(1, steps * training.batch_size // 10)
    distance: float | None = None

    def record(row: dict[str, float]) -> None:
        nonlocal distance
        if monitor is not None and main:
            images = game.done * training.batch_size
            distance = monitor.record(game.samples, images=images, every=between, facts=row)

    if game.done == 0:
        record({})
    saved = time.monotonic()
    log_interval = max(1, steps // 100)
    while game.done < steps:
        row = game.step(_microbatches(game, data, labels, seed), guidance)
        check(all(map(math.isfinite, row.values())), step=game.done)
        last = game.done == steps
        if last or game.done % log_interval == 0:
            log.append({"step": game.done, **row, **(guidance.logged if guidance else {})})
        images = game.done * training.batch_size
        if last or images // between > (images - training.batch_size) // between:
            record(row)
        note = f"{_short(images)} images, G {row['generator']:.2f} D {row['discriminator']:.2f}"
        if distance is not None:
            note += f", Frechet {distance:.3g}"
        figures = row if distance is None else {**row, "frechet": distance}
        progress(game.done, steps, Figures(note, **figures))
        due = main and not last and time.monotonic() - saved > training.checkpoint_seconds
        if checkpoint is not None and due:
            # Gradients can overflow in a step whose loss is finite: only good states are saved.
            check(game.is_finite, step=game.done, why=_NOT_FINITE)
            game.save(checkpoint, {"log": log, "guidance": state})
            saved = time.monotonic()
    check(game.is_finite, step=game.done, why=_NOT_FINITE)
    return log


def require_finite(
    finite: bool, *, what: str, step: int, why: str = "the loss is not a number", remedy: str,
    checkpoint: Path | None,
) -> None:  # fmt: skip
    """Validate that a training did not diverge.

    Raises:
        StageError: not ``finite``. It names the last good checkpoint, if there is one.
    """
    if finite:
        return
    hint = ""
    if checkpoint is not None and checkpoint.is_file():
        hint = f"; the last good state is in {checkpoint}, from where the same command goes on"
    raise StageError(f"{what} diverged at step {step} ({why}): {remedy}{hint}")


def _check_labels(game: Game, public: Tensor, class_labels: Tensor | None) -> None:
    architecture = game.discriminator.architecture
    if class_labels is None and architecture.c_dim == 0:
        return
    expected = (len(public), architecture.c_dim or architecture.critic_classes)
    found = None if class_labels is None else tuple(class_labels.shape)
    if found != expected:
        raise ValueError(f"expected class_labels of the shape {expected}, found {found}")


def _microbatches(game: Game, data: Tensor, labels: Tensor | None, seed: int) -> list[Microbatch]:
    """Draw this process's microbatches of the next batch."""
    count = game.training.batch_size // game.at_once
    own = count // game.processes.count
    first = own * game.processes.index
    parts = []
    for number in range(first, first + own):
        rng = generator(seed, game.done, *([number] if count > 1 else []))
        index = torch.randint(len(data), (game.at_once,), generator=rng).to(game.device)
        real = data[index].float() / 127.5 - 1.0
        parts.append(Microbatch(real, rng, None if labels is None else labels[index]))
    return parts


def _short(images: int) -> str:
    """Format as '960', '64.0k' or '25.0M'."""
    if images < 1000:
        return str(images)
    return f"{images / 1e3:.1f}k" if images < 1_000_000 else f"{images / 1e6:.1f}M"
