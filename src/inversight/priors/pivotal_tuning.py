"""Tunes the generator to draw the public images that the target is surest of, at their pivots.

Pivotal tuning (Roich et al. 2022, "Pivotal tuning for latent-based editing of real images"), here of one
generator to many images at once and without the paper's regularisation, which keeps what other latents
show as it was. A small prior draws none of its public images well, and what is tuned draws the rest of
them better too.
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
from inversight.priors import StylePrior
from inversight.priors.descent import ramp
from inversight.priors.pivots import BETAS, SAMPLES, ReconstructionLoss, latent_rate

_EVERY = 50
"""Steps after which it is looked how much is missed."""
_SECONDS = 30.0
"""Time from one checkpoint to the next."""
_WHAT, _LATENTS = "tuning", "latents"
"""What it is of, and what the pivots are called in it."""


def tune(
    prior: StylePrior,
    target: Target,
    images: Tensor,
    public: Tensor,
    *,
    steps: int,
    missed: float = 0.1,
    left: float = 0.03,
    learning_rate: float = 5e-3,
    batch_size: int = 32,
    rng: torch.Generator,
    progress: Progress = silent,
    checkpoint: Path | None = None,
    processes: Processes = ALONE,
) -> StylePrior:
    """The prior whose generator draws images, uint8 (M, C, S, S), better at its M pivots.

    Better in :class:`ReconstructionLoss`, by which the pivots were found, for ``steps`` steps at most. Not
    at all
    where the mean over images is at most ``missed``, and no longer than until it is at most ``left``. The
    search for the pivots goes on meanwhile, with its own step size; both are warmed up and down as it
    was. What training would go on with stays as it is, and so does the mapping. The last row of the log
    says in how many steps (``tuned``), and how much is ``missed`` after them.

    ``checkpoint`` is a file that the state is kept in from time to time, and gone on from bit by bit if it
    is there; the first of several ``processes``, which each call this alike, writes it.

    Raises:
        ValueError: the prior has not as many pivots as there are images.
        StageError: the loss or what comes of it is not a number; the last good checkpoint stays.
        DataError: the checkpoint is not one of this tuning.
    """
    pivots = prior.pivots
    if pivots is None or len(pivots) != len(images):
        found = "none" if pivots is None else len(pivots)
        raise ValueError(f"expected a pivot for each of {len(images)} images, found {found}")
    nearness = ReconstructionLoss(target, public)
    latents = pivots.clone().requires_grad_(True)
    tuned = replace(prior, average=copy.deepcopy(prior.average))
    parameters = list(tuned.average.synthesis.parameters())
    for one in parameters:
        one.requires_grad_(True)
    known = prior.truncated(1.0).sample(SAMPLES, rng=rng)
    rates = (learning_rate, latent_rate(known))
    groups: list[dict[str, Any]] = [{"params": parameters}, {"params": [latents]}]
    adam = torch.optim.Adam(groups, betas=BETAS)
    state = _State(tuned.average.synthesis, latents, adam)
    if checkpoint is not None and checkpoint.is_file():
        state.load(checkpoint)
    processes.wait()  # nobody writes a checkpoint before all have read theirs
    for _ in range(state.done):  # the rows that were drawn before
        torch.randint(len(images), (batch_size,), generator=rng)
    saved = time.monotonic()
    for step in range(state.done + 1, steps + 1):
        if step % _EVERY == 1:
            enough = missed if step == 1 else left
            if _missed(tuned, nearness, latents, images, batch_size) <= enough:
                break
        rows = torch.randint(len(images), (batch_size,), generator=rng)
        with torch.no_grad():
            wanted = nearness.seen(images[rows].to(latents.device).float() / 255.0)
        loss = nearness.between(tuned(latents[rows.to(latents.device)]), wanted) / batch_size
        if not bool(loss.isfinite()):
            raise _diverged(step, checkpoint)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate * ramp(step / steps)
        adam.step()
        state.done = step
        progress(step, steps, f"the generator tuned to {len(images)} public images")
        due = time.monotonic() - saved > _SECONDS and step < steps
        if checkpoint is not None and processes.main and due:
            if not state.is_finite:
                raise _diverged(step, checkpoint)
            state.save(checkpoint)
            saved = time.monotonic()
    for one in parameters:
        one.requires_grad_(False)
    in_the_end = _missed(tuned, nearness, latents, images, batch_size)
    if not math.isfinite(in_the_end):
        raise _diverged(state.done, checkpoint)
    if state.done < steps:
        progress(steps, steps, f"near enough to {len(images)} public images")
    row = {"tuned": float(state.done), "missed": in_the_end}
    return replace(tuned, pivots=latents.detach(), log=(*prior.log, row))


def saved_pivots(checkpoint: Path) -> Tensor | None:
    """The latents (M, w_dim) that a tuning which stopped goes on from; None where there is none.

    Raises:
        DataError: the file is damaged.
    """
    if not checkpoint.is_file():
        return None
    with reading(checkpoint, _WHAT), safe_open(checkpoint, "pt") as handle:
        latents: Tensor = handle.get_tensor(_LATENTS)
    return latents


class _State:
    """What a tuning goes on from: the synthesis network, the latents, Adam's moments, the steps done."""

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
        """Write it to ``path``, at once or not at all."""
        save_state(
            path, _WHAT, {"done": self.done}, modules={"synthesis": self.synthesis},
            optimisers={"adam": self.adam}, tensors={_LATENTS: self.latents},
        )  # fmt: skip

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Take what :meth:`save` wrote.

        Raises:
            DataError: damaged, or of another network or other images.
        """
        with reading(path, _WHAT):
            facts, tensors = load_state(
                path, _WHAT, modules={"synthesis": self.synthesis}, optimisers={"adam": self.adam}
            )
            latents = tensors[_LATENTS]
            if latents.shape != self.latents.shape:
                found, expected = tuple(latents.shape), tuple(self.latents.shape)
                raise ValueError(f"expected latents {expected}, found {found}")
            self.done = facts["done"]
        self.latents.copy_(latents)


def _diverged(step: int, checkpoint: Path | None) -> StageError:
    kept = ""
    if checkpoint is not None and checkpoint.is_file():
        kept = f"; the last good state is in {checkpoint}, from where the same command goes on"
    return StageError(
        f"the generator's tuning diverged at step {step} (the loss is not a number): lower "
        f"adaptation.pivots_learning_rate{kept}"
    )


@torch.no_grad()
def _missed(
    prior: StylePrior,
    nearness: ReconstructionLoss,
    latents: Tensor,
    images: Tensor,
    batch_size: int,
) -> float:
    """Mean over images of what their pictures miss."""
    total = 0.0
    for w, some in zip(latents.split(batch_size), images.split(batch_size), strict=True):
        wanted = nearness.seen(some.to(w.device).float() / 255.0)
        total += float(nearness.between(prior(w), wanted))
    return total / len(images)


def describe_pivots(adapted: StylePrior, *, tuning: int) -> str:
    """What became of the pivots that were asked for, in a sentence; ``tuning``: steps that were allowed."""
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
        f"well, those that the target is surest of (adaptation.pivots){tuned}: where reconstructions are "
        "near, it may be the public images that are."
    )
