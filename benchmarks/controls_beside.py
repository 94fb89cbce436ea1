"""What benchmarks/controls.py reports beside a trained leak's AUC: what the attack could have found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attack_problem import AttackProblem
from inversight.attacks.selection import render
from inversight.core.imaging import to_uint8
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.models.networks import load_classifier
from inversight.models.target import Target, target_of
from inversight.pipeline.attack import read_pictures
from inversight.pipeline.evaluation import evaluate
from inversight.priors import StylePrior
from inversight.priors.pivots import ReconstructionLoss, project
from inversight.settings import AuditSettings

STEPS = 300
"""Steps of an inversion."""


def beside(
    folder: Path,
    target: Path,
    settings: AuditSettings,
    leaked: Sequence[str],
    *,
    steps: int = STEPS,
) -> dict[str, Any]:
    """Return what is known of the private images ``leaked`` in the audit in ``folder``.

    Medians over these images of the distance to the ``attack``'s nearest reconstruction, to the image's own
    inversion by the prior (``inverted``, the floor of any attack with this prior) and to the nearest ``public``
    image. ``loss_auc``: how often the target's loss is smaller on such an image than on a holdout image of its
    class. ``oracle``: how many of them are flagged if the inversions are added to the reconstructions, how many
    others, and the AUC of the p values then.
    """
    problem = AttackProblem.from_run("controls", settings.seed, settings, folder)
    private, holdout = problem.private, problem.holdout
    assert holdout is not None
    rows = torch.tensor([private.ids.index(one) for one in leaked])
    chosen, labels = private.select(rows), private.labels[rows]
    model = target_of(load_classifier(target), "the target")
    inverted = _inverted(problem, model, chosen, steps)
    names = tuple(f"oracle/{number:04d}" for number in range(len(chosen)))
    oracle = replace(chosen, images=inverted, ids=names, hashes=names, groups=None)
    attack = read_pictures(
        folder / "reconstructions", "plug-and-play", classes=private.classes,
        channels=private.channels,
    )  # fmt: skip
    with torch.no_grad():
        ours, drawn, made, public = (
            torch.cat(problem.distance(one.floats()), 1)
            for one in (chosen, oracle, attack, problem.public)
        )
    other = labels[:, None] != attack.labels[None, :]
    nearest = {
        "attack": torch.cdist(ours, made).square().masked_fill(other, torch.inf).min(1).values,
        "inverted": (ours - drawn).square().sum(1),
        "public": torch.cdist(ours, public).square().min(1).values,
    }
    ratio = nearest["attack"] / nearest["inverted"]
    found = evaluate(
        private, {"attack": attack, "oracle": oracle}, distance=problem.distance,
        features=problem.features, evaluator=None, holdout=holdout, memory=2**30,
        seed=settings.seed, fdr=settings.fdr,
    ).samples  # fmt: skip
    repeated = found["id"].isin(leaked)
    p, q = found["p_value"], found["q_value"]
    return {
        **{name: float(values.median()) for name, values in nearest.items()},
        "attack_over_inverted": float(ratio.median()),
        "loss_auc": _loss_auc(model, chosen, holdout),
        "oracle": {
            "flagged": int((q[repeated] <= settings.fdr).sum()),
            "flagged_others": int((q[~repeated] <= settings.fdr).sum()),
            "auc": auc(p[repeated].tolist(), p[~repeated].tolist()),
        },
    }


def _inverted(problem: AttackProblem, target: Target, images: ImageSet, steps: int) -> Tensor:
    """Return the prior's nearest images to ``images``, uint8, by descent in its latents."""
    prior = StylePrior.load(problem.folder / "stages" / "adaptation" / "prior.safetensors")
    channels, size, _ = prior.image_shape
    wanted = images.resized(size=size, channels=channels).images
    loss = ReconstructionLoss(target, problem.public.images)
    latents = project(prior, loss, wanted, steps=steps, rng=generator(problem.seed, "inversion"))
    return to_uint8(render(prior, latents.detach(), batch_size=64))


@torch.no_grad()
def _loss_auc(target: Target, images: ImageSet, holdout: ImageSet) -> float:
    """Return how often the target's loss is smaller on an image than on a holdout image of its class."""
    own, others = (
        F.cross_entropy(target(one.floats()), one.labels, reduction="none")
        for one in (images, holdout)
    )
    shares = [
        auc([float(loss)], others[holdout.labels == label].tolist())
        for loss, label in zip(own, images.labels, strict=True)
    ]
    return sum(shares) / len(shares)


def auc(smaller: Sequence[float], larger: Sequence[float]) -> float:
    """Return how often a value of the first is smaller than one of the second; ties count half."""
    a, b = torch.tensor(smaller)[:, None], torch.tensor(larger)[None, :]
    return float(((a < b) + 0.5 * (a == b)).mean())
