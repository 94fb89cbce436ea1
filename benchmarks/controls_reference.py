"""What benchmarks/controls.py --parts reference tries: the same attack on a reference model, as a covariate.

A reference model is a classifier with the target's recipe that has seen public images alone, labelled by the
target. What the attack finds of an image there cannot come from its training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attack_problem import AttackProblem
from controls_beside import auc
from inversight.attacks import run_attack
from inversight.core.config import build
from inversight.core.console import Quiet
from inversight.core.imaging import to_uint8
from inversight.core.seeding import generator
from inversight.data import ImageSet, join_images
from inversight.embeddings import Embedding
from inversight.models.networks import load_classifier
from inversight.models.target import Target, accuracy_on, target_of
from inversight.models.training import Variation, train_classifier
from inversight.pipeline.attack import read_pictures
from inversight.pipeline.plan import Plan
from inversight.priors import StylePrior
from inversight.risk import calibrate, distance_gap
from inversight.risk.covariates import public_covariates
from inversight.risk.units import units_of
from inversight.settings import ATTACKS, AuditSettings, Training

NAME = "plug-and-play"
MODELS: dict[str, dict[str, int]] = {
    "trained-leak": {"hard": 1, "soft": 3, "true": 1},
    "trained-class": {"hard": 1, "soft": 1},
}
"""Reference models of each kind, by control. Classes of one image have no true public images."""
MODELLED = 3
"""Seeds with reference models; the others have distances to public images alone."""

SOFT = Variation(
    loss=lambda network, batch: F.cross_entropy(network(batch.inputs), batch.labels),
    held_loss=F.cross_entropy,
)
"""Cross-entropy with the target's probabilities instead of its predicted class."""


def reference(
    folder: Path, target: Path, settings: AuditSettings, training: Training, leaked: Sequence[str], *,
    models: Mapping[str, int],
) -> dict[str, Any]:  # fmt: skip
    """Return the tests against the holdout with several covariates, of the audit in ``folder``.

    ``models``: how many reference models of each kind; they learn the target's predicted class of each public
    image (``hard``), its probabilities (``soft``), or the image's true class (``true``). By covariates: ``auc``
    of the p values of the private images ``leaked`` against the others, the fraction of the variance
    ``explained``, p of the distance gap, how many of the leaked and of the others are flagged.
    """
    plan = Plan.prepare(settings, Quiet())
    private, holdout, public = plan.inputs.private, plan.inputs.holdout, plan.inputs.public
    assert holdout is not None and public is not None
    both, sides = join_images(private, holdout), [len(private), len(holdout)]
    problem = AttackProblem.from_run("controls", settings.seed, settings, folder)
    model = target_of(load_classifier(target), "the target")
    made = read_pictures(
        folder / "reconstructions", NAME, classes=private.classes, channels=private.channels
    )
    near = _nearest(both, made, problem.distance)
    given = public_covariates(
        both, public, problem.distance, memory=settings.memory, seed=settings.seed
    )
    with torch.no_grad():
        logits = model(public.floats())
    labelled = replace(public, labels=logits.argmax(1), classes=private.classes)
    accuracy: dict[str, list[float]] = {}
    tried: dict[str, Tensor | None] = {"none": None, "public": given}
    for kind, count in models.items():
        variation = replace(SOFT, soft=logits.softmax(1)) if kind == "soft" else Variation()
        found: list[Tensor] = []
        for number in range(count):
            own = train_classifier(
                public if kind == "true" else labelled, training=training,
                image_shape=model.image_shape, variation=variation,
                rng=generator(settings.seed, *(("reference", number) if number else ()), "target"),
            )  # fmt: skip
            other = target_of(own.classifier, "a reference model")
            accuracy.setdefault(kind, []).append(accuracy_on(other, holdout))
            found.append(_nearest(both, _attacked(problem, other, private), problem.distance).log())
            if number in (0, count - 1):
                mean = torch.stack(found).mean(0)[:, None]
                tried[f"{kind} x {number + 1}"] = mean
                tried[f"public, {kind} x {number + 1}"] = torch.cat([given, mean], 1)
    units = units_of(private, holdout).unit.split(sides)
    rows = torch.tensor([one in set(leaked) for one in private.ids])

    def measured(covariates: Tensor | None) -> dict[str, Any]:
        split = None if covariates is None else covariates.split(sides)
        distances = zip(near.split(sides), (private.labels, holdout.labels), strict=True)
        more: dict[str, Any] = {"units": units, "covariates": split}
        own, theirs = distances
        result = calibrate(own, theirs, fdr=settings.fdr, **more)
        p, flagged = result.per_sample["p_value"], result.per_sample["flagged"]
        gap = distance_gap(own, theirs, rng=generator(settings.seed, "risk/distance-gap"), **more)
        return {
            "auc": auc(p[rows].tolist(), p[~rows].tolist()),
            "explained": result.summary["flagged"].extra.get("explained"),
            "distance_gap_p": gap.extra["p_value"],
            "flagged": int(flagged[rows].sum()),
            "flagged_others": int(flagged[~rows].sum()),
        }

    return {
        "public_images_of_class": labelled.labels.bincount(minlength=len(private.classes)).tolist(),
        "reference_accuracy": accuracy,
        "target_accuracy": accuracy_on(model, holdout),
        "covariates": {name: measured(one) for name, one in tried.items()},
    }


@torch.no_grad()
def _nearest(images: ImageSet, made: ImageSet, distance: Embedding) -> Tensor:
    """Return distances (N,) float64 of images to the nearest in ``made`` of their class."""
    a, b = (torch.cat(distance(one.floats()), 1).double() for one in (images, made))
    other = images.labels[:, None] != made.labels[None, :]
    squared = torch.cdist(a, b).square().masked_fill(other, torch.inf)
    return squared.min(1).values.clamp_min(1e-6)


def _attacked(problem: AttackProblem, model: Target, private: ImageSet) -> ImageSet:
    """Return what the audit's attack finds with the audit's random numbers in another model."""
    prior = StylePrior.load(problem.folder / "stages" / "adaptation" / "prior.safetensors")
    attack: Any = build(problem.settings.attack[0], ATTACKS, role="--attack")
    made = run_attack(
        attack, model, prior, problem.labels,
        rng=generator(problem.seed, f"attack/{NAME}"),
    )  # fmt: skip
    names = tuple(f"{number:06d}" for number in range(len(made)))
    return ImageSet(to_uint8(made.images), made.labels, names, private.classes, names)
