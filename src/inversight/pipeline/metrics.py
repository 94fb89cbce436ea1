"""From what is kept of each set of reconstructions to metrics.json and the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from torch import Tensor

from inversight.core.errors import ConfigError
from inversight.core.seeding import generator
from inversight.embeddings.base import Features
from inversight.risk import calibrate, check_embedding, leakage_gap_of
from inversight.scores import (
    Assignment,
    Summary,
    accuracy,
    ddcs_of,
    first_of_each,
    frechet_distance,
    gap_to_control,
    kernel_distance,
    knn_distance,
    prdc,
    union,
)
from inversight.scores.bootstrap import class_order, mean_summary
from inversight.settings import PAIR_MEASURES

OF_FEATURES = ("coverage", "density", "precision", "recall", "frechet", "kid")
"""Metrics of feature vectors."""

RISKS = ("flagged", "leakage_gap")
"""Metrics that need a holdout."""

CONTROL_GAP = "control_gap"
"""The metric that needs a control and no holdout."""

METRICS = (
    "ddcs_best", "ddcs_average", "covered", "coverage", "density", "precision", "recall", "fid",
    "frechet", "kid", "knn_distance", "accuracy_top1", "accuracy_top5", *PAIR_MEASURES, *RISKS,
    CONTROL_GAP,
)  # fmt: skip
"""Keys of metrics.json, in its order."""

_NO_EVALUATOR = "needs an evaluator: give --evaluator"
_MISSING: dict[str, str] = {
    "fid": "defined on Inception features only: give --features inception",
    **dict.fromkeys(("knn_distance", "accuracy_top1", "accuracy_top5"), _NO_EVALUATOR),
    **{str(m): f"was not asked for: give --pairs {m}" for m in PAIR_MEASURES},
    **dict.fromkeys(
        OF_FEATURES, "the features of sets that were scored before are too wide to be kept"
    ),
    **dict.fromkeys(RISKS, "needs a holdout: give --holdout"),
}
"""Why a metric is missing where nothing more special is known."""

Metrics = dict[str, dict[str, object]]
_Found = tuple[dict[str, Summary], dict[str, object]]
"""(metrics by key, columns of samples.parquet)"""


@dataclass(frozen=True)
class ReferenceSet:
    """The images that reconstructions are compared with: private images and holdout.

    labels index ``classes``. features, evaluator: (N, D) of the private images in the order of
    ``ids``, or None. missing: why metrics cannot be computed, by key. neighbour_distance: (N,) float64,
    mean distance to the nearest private images of the class, or None.
    """

    ids: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    holdout_ids: tuple[str, ...] = ()
    holdout_labels: Tensor | None = None
    features: Tensor | None = None
    evaluator: Tensor | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    neighbour_distance: Tensor | None = None


@dataclass(frozen=True)
class ScoredSet:
    """What is kept of one set of M reconstructions.

    assignment: to the private images; holdout: to the holdout images, None without any. features,
    evaluator: (M, D). logits: (M, K), the evaluator's. pairs: for each pair measure (N,) float64, of
    each private image and its nearest reconstruction in this set.
    """

    name: str
    ids: tuple[str, ...]
    labels: Tensor
    assignment: Assignment
    holdout: Assignment | None = None
    features: Tensor | None = None
    evaluator: Tensor | None = None
    logits: Tensor | None = None
    pairs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """The scores of all sets together and of each one.

    metrics: metrics.json. samples: samples.parquet, one row for each private image, nearest first.
    holdout: id, label and nearest distance of holdout images, if there are any. by_set: each set's own
    metrics. reference, sets: to which more reconstructions can be added. nearness: see
    :func:`nearness`, of each set and of each set that was measured by distance alone.
    """

    metrics: Metrics
    samples: pd.DataFrame
    holdout: pd.DataFrame | None
    by_set: dict[str, Metrics]
    reference: ReferenceSet
    sets: tuple[ScoredSet, ...]
    nearness: dict[str, dict[str, Summary]] = field(default_factory=dict)


def summarise(
    reference: ReferenceSet,
    sets: tuple[ScoredSet, ...],
    *,
    distance_name: str,
    features_name: str,
    memory: int,
    seed: int,
    fdr: float,
    control: ScoredSet | None = None,
) -> Evaluation:
    """Return the metrics and tables of sets of reconstructions."""

    def measured(one: ScoredSet) -> tuple[Metrics, dict[str, object]]:
        found, columns = _distances(reference, one, seed)
        for part in (
            _of_features(reference, one, features_name, memory, seed),
            _of_evaluator(reference, one, memory, seed),
            _of_pairs(reference, one, seed),
        ):
            found |= part
        risks, more = _risk(reference, one, distance_name, fdr, seed)
        found |= {**risks, CONTROL_GAP: _control_gap(reference, one, control, seed)}
        reasons = {**_MISSING, **reference.missing}
        metrics = {
            key: found[key] if key in found else Summary(None, reason=reasons[key])
            for key in METRICS
        }
        return {key: dict(one.as_json()) for key, one in metrics.items()}, {**columns, **more}

    whole = join(sets)
    metrics, columns = measured(whole)
    by_set = {one.name: measured(one)[0] if len(sets) > 1 else metrics for one in sets}
    owner = [one.name for one in sets for _ in one.ids]
    nearest = [owner[row] if row >= 0 else None for row in whole.assignment.nearest_row.tolist()]
    samples = pd.DataFrame(
        {
            "id": reference.ids,
            "label": [reference.classes[i] for i in reference.labels.tolist()],
            **columns,
            "nearest_set": pd.array(nearest, dtype="string"),
        }
    ).sort_values(["nearest_distance", "id"], na_position="last", ignore_index=True)
    holdout: pd.DataFrame | None = None
    if reference.holdout_labels is not None and whole.holdout is not None:
        holdout = pd.DataFrame(
            {
                "id": reference.holdout_ids,
                "label": [reference.classes[i] for i in reference.holdout_labels.tolist()],
                "nearest_distance": nearest_distances(whole.holdout).numpy(),
            }
        ).sort_values("id", ignore_index=True)
    return Evaluation(metrics, samples, holdout, by_set, reference, sets)


def join(sets: Sequence[ScoredSet]) -> ScoredSet:
    """Return several sets against the same private images as one."""
    if len(sets) == 1:
        return sets[0]
    names = [s.ids for s in sets]
    assignment = union([s.assignment for s in sets], names)
    holdout = [s.holdout for s in sets if s.holdout is not None]
    start = torch.tensor([0, *(len(s.ids) for s in sets)]).cumsum(0)
    # The set of each image's nearest reconstruction; any set where there is none.
    which = torch.bucketize(assignment.nearest_row, start[1:-1], right=True)

    def together(name: str) -> Tensor | None:
        parts = [getattr(s, name) for s in sets]
        return None if any(p is None for p in parts) else torch.cat(parts)

    measured = [m for m in PAIR_MEASURES if all(m in s.pairs for s in sets)]
    return ScoredSet(
        name="all",
        ids=tuple(i for s in sets for i in s.ids),
        labels=torch.cat([s.labels for s in sets]),
        assignment=assignment,
        holdout=union(holdout, names) if holdout else None,
        features=together("features"),
        evaluator=together("evaluator"),
        logits=together("logits"),
        pairs={
            m: torch.stack([s.pairs[m] for s in sets]).gather(0, which[None]).squeeze(0)
            for m in measured
        },
    )


def nearness(reference: ReferenceSet, one: ScoredSet, seed: int) -> dict[str, Summary]:
    """Return what distances alone tell of a set: ddcs_best, ddcs_average, covered, nearest_distance.

    nearest_distance is the mean over private images that have a reconstruction in their class.
    """
    found = ddcs_of(
        one.assignment, labels=reference.labels, ids=reference.ids, reconstruction_ids=one.ids,
        rng=generator(seed, "scores/ddcs"),
    )  # fmt: skip
    rng = generator(seed, "scores/nearest")
    mean = _mean(nearest_distances(one.assignment), reference, rng)
    return {**found.summary, "nearest_distance": mean}


def nearest_distances(assignment: Assignment) -> Tensor:
    """Return the nearest distances (N,), NaN where the class has no reconstruction."""
    nearest = assignment.nearest
    return nearest.where(nearest.isfinite(), torch.full_like(nearest, float("nan")))


def _distances(reference: ReferenceSet, one: ScoredSet, seed: int) -> _Found:
    """Return DDCS and the ledger's columns, in the order of the private images."""
    found = ddcs_of(
        one.assignment, labels=reference.labels, ids=reference.ids, reconstruction_ids=one.ids,
        rng=generator(seed, "scores/ddcs"),
    )  # fmt: skip
    columns: dict[str, object] = {k: values.numpy() for k, values in found.per_sample.items()}
    exact = columns.pop("exact_hit")
    columns |= {
        "nearest_reconstruction": pd.array(found.nearest_reconstruction, dtype="string"),
        "exact_hit": exact,
        **{measure: values.numpy() for measure, values in one.pairs.items()},
    }
    return dict(found.summary), columns


def _of_features(
    reference: ReferenceSet, one: ScoredSet, name: str, memory: int, seed: int
) -> dict[str, Summary]:
    if reference.features is None or one.features is None:
        return {}
    a = Features((reference.features,), reference.labels, reference.ids)
    b = Features((one.features,), one.labels, one.ids)
    found: dict[str, Summary] = {}
    for result in (
        prdc(a, b, memory=memory, rng=generator(seed, "scores/prdc")),
        frechet_distance(a, b),
        kernel_distance(a, b, rng=generator(seed, "scores/kid")),
    ):
        found |= result.on_features(name).summary
    return {**found, "fid": found["frechet"]} if name == "inception" else found


def _of_evaluator(
    reference: ReferenceSet, one: ScoredSet, memory: int, seed: int
) -> dict[str, Summary]:
    if reference.evaluator is None or one.evaluator is None or one.logits is None:
        return {}
    a = Features((reference.evaluator,), reference.labels, reference.ids)
    b = Features((one.evaluator,), one.labels, one.ids)
    near = knn_distance(a, b, memory=memory, rng=generator(seed, "scores/knn"))
    return {**near.on_features("evaluator").summary, **accuracy(one.logits, one.labels).summary}


def _of_pairs(reference: ReferenceSet, one: ScoredSet, seed: int) -> dict[str, Summary]:
    rng = generator(seed, "scores/pairs")
    return {key: _mean(values, reference, rng) for key, values in one.pairs.items()}


def _risk(
    reference: ReferenceSet, one: ScoredSet, distance_name: str, fdr: float, seed: int
) -> _Found:
    """Return the metrics that need a holdout, and their columns."""
    labels, holdout = reference.holdout_labels, one.holdout
    if labels is None or holdout is None:
        return {}, {}
    images = len(reference.ids)
    unknown = torch.full((images,), float("nan"), dtype=torch.float64)
    columns: Mapping[str, Tensor] = {
        "p_value": unknown,
        "q_value": unknown,
        "flagged": torch.zeros(images, dtype=torch.bool),
    }
    try:
        check_embedding(distance_name)
    except ConfigError as error:
        found: Mapping[str, Summary] = dict.fromkeys(RISKS, Summary(None, reason=str(error)))
    else:
        private = nearest_distances(one.assignment), reference.labels
        result = calibrate(private, (nearest_distances(holdout), labels), fdr=fdr)
        columns = result.per_sample
        gap = leakage_gap_of(
            one.assignment,
            holdout,
            labels=reference.labels,
            ids=reference.ids,
            holdout_labels=labels,
            holdout_ids=reference.holdout_ids,
            rng=generator(seed, "risk/gap"),
        )
        found = {**result.summary, "leakage_gap": gap}
    missing = columns["q_value"].isnan().numpy()
    return dict(found), {
        "p_value": columns["p_value"].numpy(),
        "q_value": columns["q_value"].numpy(),
        "flagged": pd.arrays.BooleanArray(columns["flagged"].numpy(), missing),
    }


def _control_gap(
    reference: ReferenceSet, one: ScoredSet, control: ScoredSet | None, seed: int
) -> Summary:
    """Return DDCS best of the set less that of as many of the control's images of each class."""
    if reference.holdout_labels is not None:
        return Summary(
            None, reason="there is a holdout, which says more: see flagged and leakage_gap"
        )
    if control is None:
        return Summary(
            None,
            reason="needs samples of the prior that no target guided, which only an audit makes",
        )
    counts = one.labels.bincount(minlength=len(reference.classes))
    kept = first_of_each(control.labels, counts)
    as_many = replace(
        control.assignment,
        owner=control.assignment.owner[kept],
        distance=control.assignment.distance[kept],
    )
    return gap_to_control(
        one.assignment,
        as_many,
        labels=reference.labels,
        ids=reference.ids,
        rng=generator(seed, "scores/control"),
    )


def _mean(values: Tensor, reference: ReferenceSet, rng: torch.Generator) -> Summary:
    """Return the mean over private images that have a reconstruction in their class."""
    rows = values.isfinite().nonzero().squeeze(1)
    if len(rows) == 0:
        return Summary(None, reason="no private image has a reconstruction of its class")
    order, sizes = class_order(reference.labels[rows], [reference.ids[i] for i in rows.tolist()])
    extra = {"private_images": len(rows)}
    return mean_summary(values[rows][order], sizes, resamples=1000, rng=rng, extra=extra)
