"""Tunes the generator to reproduce chosen public images at their pivots.

Pivotal tuning (Roich et al. 2022, "Pivotal tuning for latent-based editing of real images"), here of one
generator to many images at once, without the paper's regularisation, which keeps the images of other
latents unchanged. A small prior reproduces none of its public images well, and tuning improves the others
too.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from inversight.core.checkpoints import load_state, reading, save_state
from inversight.core.errors import StageError
from inversight.core.processes import ALONE, Processes
from inversight.core.progress import Progress, silent
from inversight.models.target import Target
from inversight.priors.descent import ramp
from inversight.priors.pivots import BETAS, SAMPLES, ReconstructionLoss, latent_rate
from inversight.priors.style_prior import StylePrior
from inversight.priors.training import resume_hint

_CHECK_INTERVAL = 50
"""Steps between two computations of the loss of all images."""
_CHECKPOINT_SECONDS = 30.0
_KIND, _LATENTS = "tuning", "latents"
"""Kind of the checkpoint, and the name of the pivots in it."""


def tune(
    prior: StylePrior, target: Target, images: Tensor, public: Tensor, *, steps: int,
    missed: float = 0.1, left: float = 0.03, learning_rate: float = 5e-3, batch_size: int = 32,
    rng: torch.Generator, progress: Progress = silent, checkpoint: Path | None = None,
    processes: Processes = ALONE,
) -> StylePrior:  # fmt: skip
    """Minimise the :class:`ReconstructionLoss` of images in the synthesis network and the pivots together.

    The mapping network, and the networks that a training would continue with, are unchanged. The
    learning rates follow the schedule of the projection.

    Args:
        prior: a prior with M pivots.
        target: its feature maps are part of the loss.
        images: uint8 (M, C, S, S), the images of the pivots.
        public: uint8 (N, C, S, S), images that the loss is standardised by.
        steps: maximum number of steps.
        missed: do not tune if the mean loss of the images is at most this.
        left: stop as soon as the mean loss is at most this.
        learning_rate: Adam's step size for the synthesis network.
        batch_size: images in each step.
        rng: draws the batches.
        progress: called after each step.
        checkpoint: file to save the state to at intervals, and to resume from bit by bit if it exists.
        processes: all call this alike; the first writes the checkpoint.

    Returns:
        The tuned prior. The last row of its log says how many steps were done (``tuned``) and the mean
        loss after them (``missed``).

    Raises:
        ValueError: the number of pivots is not that of the images.
        StageError: the loss or the result is not finite; the last good checkpoint is kept.
        DataError: the checkpoint is of another tuning.
    """
    pivots = prior.pivots
    if pivots is None or len(pivots) != len(images):
        found = "none" if pivots is None else len(pivots)
        raise ValueError(f"expected a pivot for each of {len(images)} images, found {found}")
    loss_of = ReconstructionLoss(target, public)
    latents = pivots.clone().requires_grad_(True)
    tuned = replace(prior, average=copy.deepcopy(prior.average))
    parameters = list(tuned.average.synthesis.parameters())
    for one in parameters:
        one.requires_grad_(True)
    known = prior.truncated(1.0).sample(SAMPLES, rng=rng)
    rates = (learning_rate, latent_rate(known))
    groups: list[dict[str, Any]] = [{"params": parameters}, {"params": [latents]}]
    adam = torch.optim.Adam(groups, betas=BETAS)
    state = _TuningState(tuned.average.synthesis, latents, adam)
    if checkpoint is not None and checkpoint.is_file():
        state.load(checkpoint)
    processes.wait()  # nobody writes a checkpoint before all have read theirs
    for _ in range(state.done):  # the rows that were drawn before
        torch.randint(len(images), (batch_size,), generator=rng)

    @torch.no_grad()
    def mean_loss() -> float:
        total = 0.0
        for w, some in zip(latents.split(batch_size), images.split(batch_size), strict=True):
            wanted = loss_of.features(some.to(w.device).float() / 255.0)
            total += float(loss_of(tuned(w), wanted))
        return total / len(images)

    saved = time.monotonic()
    for step in range(state.done + 1, steps + 1):
        if step % _CHECK_INTERVAL == 1 and mean_loss() <= (missed if step == 1 else left):
            break
        rows = torch.randint(len(images), (batch_size,), generator=rng)
        with torch.no_grad():
            wanted = loss_of.features(images[rows].to(latents.device).float() / 255.0)
        loss = loss_of(tuned(latents[rows.to(latents.device)]), wanted) / batch_size
        if not bool(loss.isfinite()):
            raise _diverged(step, checkpoint)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate * ramp(step / steps)
        adam.step()
        state.done = step
        progress(step, steps, f"the generator tuned to {len(images)} public images")
        due = time.monotonic() - saved > _CHECKPOINT_SECONDS and step < steps
        if checkpoint is not None and processes.main and due:
            if not state.is_finite:
                raise _diverged(step, checkpoint)
            state.save(checkpoint)
            saved = time.monotonic()
    for one in parameters:
        one.requires_grad_(False)
    final = mean_loss()
    if not math.isfinite(final):
        raise _diverged(state.done, checkpoint)
    if state.done < steps:
        progress(steps, steps, f"near enough to {len(images)} public images")
    row = {"tuned": float(state.done), "missed": final}
    return replace(tuned, pivots=latents.detach(), log=(*prior.log, row))


def saved_pivots(checkpoint: Path) -> Tensor | None:
    """Return the latents (M, w_dim) in the checkpoint of a tuning; None if there is no checkpoint.

    Raises:
        DataError: the file is damaged.
    """
    if not checkpoint.is_file():
        return None
    with reading(checkpoint, _KIND), safe_open(checkpoint, "pt") as handle:
        latents: Tensor = handle.get_tensor(_LATENTS)
    return latents


class _TuningState:
    """What a tuning resumes from: synthesis network, latents, Adam's moments, number of steps done."""

    def __init__(self, synthesis: nn.Module, latents: Tensor, adam: torch.optim.Optimizer) -> None:
        self.synthesis = synthesis
        self.latents = latents
        self.adam = adam
        self.done = 0

    @property
    def is_finite(self) -> bool:
        values = (self.latents, *self.synthesis.parameters())
        return all(bool(value.isfinite().all()) for value in values)

    def save(self, path: Path) -> None:
        """Write the state to ``path``, atomically."""
        save_state(
            path, _KIND, {"done": self.done}, modules={"synthesis": self.synthesis},
            optimisers={"adam": self.adam}, tensors={_LATENTS: self.latents},
        )  # fmt: skip

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Load what :meth:`save` wrote.

        Raises:
            DataError: damaged, or of another network or other images.
        """
        with reading(path, _KIND):
            facts, tensors = load_state(
                path, _KIND, modules={"synthesis": self.synthesis}, optimisers={"adam": self.adam}
            )
            latents = tensors[_LATENTS]
            if latents.shape != self.latents.shape:
                found, expected = tuple(latents.shape), tuple(self.latents.shape)
                raise ValueError(f"expected latents {expected}, found {found}")
            self.done = facts["done"]
        self.latents.copy_(latents)


def _diverged(step: int, checkpoint: Path | None) -> StageError:
    return StageError(
        f"the generator's tuning diverged at step {step} (the loss is not a number): lower "
        f"adaptation.pivots_learning_rate{resume_hint(checkpoint)}"
    )


def describe_pivots(adapted: StylePrior, *, tuning: int) -> str:
    """Return a sentence about the pivots that were requested; ``tuning``: maximum steps of the tuning."""
    if adapted.pivots is None:
        return (
            "Attacks begin with samples of the prior alone: of no public image the target is as sure as "
            "adaptation.pivots_surer_than asks for."
        )
    last = adapted.log[-1] if adapted.log else {}
    tuned = ""
    if tuning > 0 and "tuned" not in last:
        tuned = ", too few to tune the prior to (adaptation.pivots_tuning)"
    elif tuning > 0:
        missed = f"{last['missed']:.2g} of the public images' variance is missed (adaptation.pivots_tuning)"
        tuned = (
            f", to which the prior was tuned in {last['tuned']:.0f} steps, after which {missed}"
            if last["tuned"] > 0
            else f"; the prior draws them well enough untuned, {missed}"
        )
    return (
        f"Attacks that begin with a pool of samples begin with {len(adapted.pivots)} public images as "
        f"well, those in which the target is most confident (adaptation.pivots){tuned}: a near "
        "reconstruction may be near because a public image is."
    )
