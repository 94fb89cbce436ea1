"""Scores of reconstructions against private images: what ``audit`` and ``score`` share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from inversight.data import ImageSet
from inversight.embeddings import Embedding, PooledEmbedding, embed
from inversight.errors import DataError
from inversight.progress import Progress, silent
from inversight.scores import Summary, accuracy, ddcs, frechet_distance, knn_distance, prdc
from inversight.seeding import generator
from inversight.target import Target

_NO_EVALUATOR = "needs an evaluator: give --evaluator"
_NO_INCEPTION = "defined on Inception features only: give --features inception"
_NO_HOLDOUT = "needs a holdout: give --holdout"
_NO_CALIBRATION = "calibration against the holdout is not part of this version"
METRICS = (
    "ddcs_best",
    "ddcs_average",
    "covered",
    "coverage",
    "density",
    "precision",
    "recall",
    "fid",
    "frechet",
    "knn_distance",
    "accuracy_top1",
    "accuracy_top5",
    "flagged",
    "leakage_gap",
)
"""Keys of metrics.json, in its order."""


@dataclass(frozen=True)
class Evaluation:
    """metrics: metrics.json. samples: samples.parquet, one row for each private image, most exposed
    first. holdout: id, label and nearest distance of holdout images, if there are any."""

    metrics: dict[str, dict[str, Any]]
    samples: pd.DataFrame
    holdout: pd.DataFrame | None


def evaluate(
    private: ImageSet,
    reconstructions: ImageSet,
    *,
    distance: Embedding,
    features: Embedding,
    evaluator: Target | None,
    holdout: ImageSet | None,
    memory: int,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Evaluation:
    """Score ``reconstructions``; all sets share one class order. Independent of row order.

    Raises:
        DataError: a reconstruction of a class that private does not have.
    """
    check_classes(private, reconstructions)
    rng = generator(seed, "scores")
    ours = embed(distance, private, device=device, progress=progress)
    theirs = embed(distance, reconstructions, device=device, progress=progress)
    scored = ddcs(ours, theirs, memory=memory, rng=rng)
    found: dict[str, Summary] = dict(scored.summary)

    if features.name == distance.name and features is distance:
        ours_f, theirs_f = ours, theirs
    else:
        ours_f = embed(features, private, device=device, progress=progress)
        theirs_f = embed(features, reconstructions, device=device, progress=progress)
    found |= prdc(ours_f, theirs_f).on_features(features.name).summary
    frechet = frechet_distance(ours_f, theirs_f).on_features(features.name).summary["frechet"]
    found["frechet"] = frechet
    if features.name == "inception":
        found["fid"] = frechet

    if evaluator is not None:
        pooled = PooledEmbedding("evaluator", evaluator)
        ours_e = embed(pooled, private, device=device, progress=progress)
        theirs_e = embed(pooled, reconstructions, device=device, progress=progress)
        found |= knn_distance(ours_e, theirs_e).on_features("evaluator").summary
        logits = predict(evaluator, reconstructions, device=device)
        found |= accuracy(logits, reconstructions.labels).summary

    frame = pd.DataFrame(
        {
            "id": private.ids,
            "label": [private.classes[i] for i in private.labels.tolist()],
            "ddcs_best": scored.per_sample["ddcs_best"].numpy(),
            "ddcs_average": scored.per_sample["ddcs_average"].numpy(),
            "reconstructions": scored.per_sample["reconstructions"].numpy(),
            "nearest_distance": scored.per_sample["nearest_distance"].numpy(),
            "nearest_reconstruction": pd.array(scored.nearest_reconstruction, dtype="string"),
            "exact_hit": scored.per_sample["exact_hit"].numpy(),
        }
    ).sort_values(["nearest_distance", "id"], na_position="last", ignore_index=True)

    unseen: pd.DataFrame | None = None
    if holdout is not None:
        held = ddcs(
            embed(distance, holdout, device=device, progress=progress),
            theirs,
            memory=memory,
            bootstrap=0,
            rng=rng,
        )
        unseen = pd.DataFrame(
            {
                "id": holdout.ids,
                "label": [holdout.classes[i] for i in holdout.labels.tolist()],
                "nearest_distance": held.per_sample["nearest_distance"].numpy(),
            }
        ).sort_values("id", ignore_index=True)
    return Evaluation(_metrics(found, holdout is not None), frame, unseen)


def check_classes(private: ImageSet, reconstructions: ImageSet) -> None:
    """Refuse reconstructions of classes without private images.

    Raises:
        DataError: naming the first such reconstruction.
    """
    own = {private.classes[i] for i in private.labels.tolist()}
    for name, label in zip(reconstructions.ids, reconstructions.labels.tolist(), strict=True):
        if reconstructions.classes[label] not in own:
            raise DataError(
                f"--reconstructions: {name} is of class {reconstructions.classes[label]}, which "
                "--private does not have; rename its folder or leave it out"
            )


@torch.no_grad()
def predict(
    model: Target, images: ImageSet, *, batch_size: int = 64, device: torch.device | str = "cpu"
) -> Tensor:
    """Logits (N, K) on the CPU, in row order."""
    return torch.cat(
        [
            model(images.select(index).floats().to(device)).float().cpu()
            for index in torch.arange(len(images)).split(batch_size)
        ]
    )


def _metrics(found: Mapping[str, Summary], has_holdout: bool) -> dict[str, dict[str, Any]]:
    missing = {
        "fid": _NO_INCEPTION,
        "knn_distance": _NO_EVALUATOR,
        "accuracy_top1": _NO_EVALUATOR,
        "accuracy_top5": _NO_EVALUATOR,
        "flagged": _NO_CALIBRATION if has_holdout else _NO_HOLDOUT,
        "leakage_gap": _NO_CALIBRATION if has_holdout else _NO_HOLDOUT,
    }
    return {
        key: dict(found[key].as_json())
        if key in found
        else {"value": None, "low": None, "high": None, "reason": missing[key]}
        for key in METRICS
    }
