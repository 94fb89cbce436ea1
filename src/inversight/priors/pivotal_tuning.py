"""Tunes the generator to reproduce chosen images at their pivots.

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
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from inversight.core.checkpoints import load_state, reading, save_state
from inversight.core.processes import ALONE, Processes
from inversight.core.progress import Progress, silent
from inversight.priors.descent import ramp
from inversight.priors.pivots import BETAS, SAMPLES, ReconstructionLoss, latent_rate
from inversight.priors.style_prior import StylePrior
from inversight.priors.training import require_finite

_CHECK_INTERVAL = 50
"""Steps between two computations of the loss of all images."""
_CHECKPOINT_SECONDS = 30.0
_KIND, _LATENTS = "tuning", "latents"
"""Kind of the checkpoint, and the name of the pivots in it."""


def tune(
    prior: StylePrior, loss: ReconstructionLoss, images: Tensor, *, steps: int,
    missed: float = 0.1, left: float = 0.03, learning_rate: float = 5e-3, batch_size: int = 32,
    rng: torch.Generator, progress: Progress = silent, checkpoint: Path | None = None,
    processes: Processes = ALONE, setting: str = "adaptation.pivots_learning_rate",
) -> StylePrior:  # fmt: skip
    """Minimise the loss of images in the synthesis network and the pivots together.

    The mapping network, and the networks that a training would continue with, are unchanged. The
    learning rates follow the schedule of the projection.

    Args:
        prior: a prior with M pivots.
        loss: between an image and its reconstruction.
        images: uint8 (M, C, S, S), the images of the pivots.
        steps: maximum number of steps.
        missed: do not tune if the mean loss of the images is at most this.
        left: stop as soon as the mean loss is at most this.
        learning_rate: Adam's step size for the synthesis network.
        batch_size: images in each step.
        rng: draws the batches.
        progress: called after each step.
        checkpoint: file to save the state to at intervals, and to resume from bit by bit if it exists.
        processes: all call this alike; the first writes the checkpoint.
        setting: name of the learning rate in the message of an error.

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
    tuned = replace(prior, average=copy.deepcopy(prior.average), cache=None)
    latents = nn.Parameter(pivots.clone())
    modules = {
        "synthesis": tuned.average.synthesis.requires_grad_(True),
        "pivots": nn.ParameterDict({_LATENTS: latents}),
    }
    known = prior.truncated(1.0).sample(SAMPLES, rng=rng)
    rates = (learning_rate, latent_rate(known))
    adam = torch.optim.Adam([{"params": m.parameters()} for m in modules.values()], betas=BETAS)
    optimisers = {"adam": adam}
    done = 0
    check = partial(
        require_finite, what="the generator's tuning", checkpoint=checkpoint,
        remedy=f"lower {setting}",
    )  # fmt: skip

    def total_loss(rows: Tensor) -> Tensor:
        wanted = loss.wanted(images[rows].to(latents.device))
        return loss(tuned(latents[rows.to(latents.device)]), wanted)

    @torch.no_grad()
    def mean_loss() -> float:
        parts = torch.arange(len(images)).split(batch_size)
        return sum(float(total_loss(rows)) for rows in parts) / len(images)

    if checkpoint is not None and checkpoint.is_file():
        with reading(checkpoint, _KIND):
            facts = load_state(checkpoint, _KIND, modules=modules, optimisers=optimisers)
            done = facts["done"]
    processes.wait()  # nobody writes a checkpoint before all have read theirs
    for _ in range(done):  # the rows that were drawn before
        torch.randint(len(images), (batch_size,), generator=rng)
    saved = time.monotonic()
    while done < steps:
        if done % _CHECK_INTERVAL == 0 and mean_loss() <= (missed if done == 0 else left):
            break
        value = total_loss(torch.randint(len(images), (batch_size,), generator=rng)) / batch_size
        done += 1
        check(bool(value.isfinite()), step=done)
        adam.zero_grad()
        value.backward()
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate * ramp(done / steps)
        adam.step()
        progress(done, steps, f"the generator tuned to {len(images)} images")
        due = processes.main and done < steps and time.monotonic() - saved > _CHECKPOINT_SECONDS
        if checkpoint is not None and due:
            parameters = (p for module in modules.values() for p in module.parameters())
            check(all(bool(p.isfinite().all()) for p in parameters), step=done)
            save_state(checkpoint, _KIND, {"done": done}, modules=modules, optimisers=optimisers)
            saved = time.monotonic()
    tuned.average.requires_grad_(False)
    final = mean_loss()
    check(math.isfinite(final), step=done)
    if done < steps:
        progress(steps, steps, f"near enough to {len(images)} images")
    row = {"tuned": float(done), "missed": final}
    return replace(tuned, pivots=latents.detach(), log=(*prior.log, row))


def images_compared(images: int, *, steps: int, batch_size: int) -> int:
    """Return how many images :func:`tune` compares in all ``steps`` steps, reconstructions not counted."""
    return batch_size * steps + images * (math.ceil(steps / _CHECK_INTERVAL) + 1)


def saved_pivots(checkpoint: Path) -> Tensor | None:
    """Return the latents (M, w_dim) in the checkpoint of a tuning; None if there is no checkpoint.

    Raises:
        DataError: the file is damaged.
    """
    if not checkpoint.is_file():
        return None
    with reading(checkpoint, _KIND), safe_open(checkpoint, "pt") as handle:
        latents: Tensor = handle.get_tensor(f"pivots/{_LATENTS}")
    return latents


def describe_pivots(adapted: StylePrior, *, tuning: int) -> str:
    """Return a sentence about the pivots that were requested; ``tuning``: maximum steps of the tuning."""
    if adapted.pivots is None:
        return (
            "Attacks begin with samples of the prior alone: of no public image the target is as sure as "
            "adaptation.pivots_surer_than asks for."
        )
    last = adapted.log[-1] if adapted.log else {}
    tuned = "" if tuning == 0 else ", too few to tune the prior to (adaptation.pivots_tuning)"
    if tuning > 0 and "tuned" in last:
        tuned = f", to which the prior was tuned in {last['tuned']:.0f} steps, after which "
        if last["tuned"] == 0:
            tuned = "; the prior draws them well enough untuned, "
        tuned += f"{last['missed']:.2g} of the public images' variance is missed (adaptation.pivots_tuning)"
    return (
        f"Attacks that begin with a pool of samples begin with {len(adapted.pivots)} public images as "
        f"well, those in which the target is most confident (adaptation.pivots){tuned}: a near "
        "reconstruction may be near because a public image is."
    )
