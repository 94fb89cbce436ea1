"""Metrics and tables of sets of reconstructions, computed from what is kept of each set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from inversight.core.errors import ConfigError
from inversight.core.seeding import generator
from inversight.embeddings.base import Features
from inversight.risk import calibrate, check_embedding, distance_gap, leakage_gap_of
from inversight.scores import (
    Assignment,
    DDCSResult,
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

RISKS = ("flagged", "distance_gap", "leakage_gap")
"""Metrics that need a holdout."""

CONTROL_GAP = "control_gap"
"""The metric that needs a control and no holdout."""

EXPOSURES = ("exposed", "exposure_mean", "exposure_auc", "membership_auc")
"""Metrics that need shadow models."""

METRICS = (
    "ddcs_best", "ddcs_average", "covered", "coverage", "density", "precision", "recall", "fid",
    "frechet", "kid", "knn_distance", "accuracy_top1", "accuracy_top5", *PAIR_MEASURES, *RISKS,
    CONTROL_GAP, *EXPOSURES,
)  # fmt: skip
"""Keys of metrics.json, in its order."""

_SMALLEST_INCEPTION = 32
"""Pixels a side below which Inception features get a caveat."""

_NO_EVALUATOR = "needs an evaluator: give --evaluator"
_MISSING: dict[str, str] = {
    "fid": "defined on Inception features only: give --features inception",
    **dict.fromkeys(("knn_distance", "accuracy_top1", "accuracy_top5"), _NO_EVALUATOR),
    **{str(m): f"was not asked for: give --pairs {m}" for m in PAIR_MEASURES},
    **dict.fromkeys(
        OF_FEATURES, "the features of sets that were scored before are too wide to be kept"
    ),
    **dict.fromkeys(RISKS, "needs a holdout: give --holdout"),
    **dict.fromkeys(EXPOSURES, "needs the shadow models of an audit (--shadows K)"),
}
"""Why a metric is missing where nothing more special is known."""

Metrics = dict[str, dict[str, object]]
_RISK_COLUMNS = ("p_value", "q_value", "flagged")


@dataclass(frozen=True)
class ReferenceSet:
    """The images that reconstructions are compared with: private images and holdout.

    labels index ``classes``. features, evaluator: (N, D) of the private images in the order of
    ``ids``, or None. missing: why metrics cannot be computed, by key. neighbour_distance: (N,) float64,
    mean distance to the nearest private images of the class, or None. groups: of the private images,
    None where none were given. units: (N + M,) int64, of private images and the M holdout images: those
    with equal numbers depend on each other; None: each image alone. covariates: (N + M, P) float64, of the
    same images, what is known of them without the target; None: nothing. size: of the private images, in
    pixels; None if it was not kept.
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
    groups: tuple[str | None, ...] | None = None
    units: Tensor | None = None
    covariates: Tensor | None = None
    size: int | None = None

    def of_sides(self, values: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Return the parts of ``values`` (N + M, ...) of private images and of holdout images."""
        if values is None:
            return None
        private, unseen = values.split([len(self.ids), len(self.holdout_ids)])
        return private, unseen

    def table(self, ids: Sequence[str], labels: Tensor, **columns: object) -> pd.DataFrame:
        """Return a table of images: ``id``, the name of the class as ``label``, and ``columns``."""
        names = [self.classes[i] for i in labels.tolist()]
        return pd.DataFrame({"id": ids, "label": names, **columns})


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


Scored = tuple[ReferenceSet, tuple[ScoredSet, ...]]
"""What is kept of a scoring, to which more sets can be added."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of all sets together and of each one.

    metrics: metrics.json. samples: samples.parquet, one row for each private image, nearest first.
    holdout: id, label and nearest distance of holdout images, if there are any. by_set: each set's own
    metrics. reference, sets: to which more reconstructions can be added. nearness: what distances
    alone tell of each set, also of sets that were measured by distance alone: ddcs_best, ddcs_average,
    covered and nearest_distance, the mean over private images that have a reconstruction in their class.
    """

    metrics: Metrics
    samples: pd.DataFrame
    holdout: pd.DataFrame | None
    by_set: dict[str, Metrics]
    reference: ReferenceSet
    sets: tuple[ScoredSet, ...]
    nearness: dict[str, dict[str, Summary]]


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
        **{name: together(name) for name in ("features", "evaluator", "logits")},
        pairs={
            m: torch.stack([s.pairs[m] for s in sets]).gather(0, which[None]).squeeze(0)
            for m in measured
        },
    )


def nearest_distances(assignment: Assignment) -> Tensor:
    """Return the nearest distances (N,), NaN where the class has no reconstruction."""
    nearest = assignment.nearest
    return nearest.where(nearest.isfinite(), torch.full_like(nearest, float("nan")))


@dataclass(frozen=True)
class Scoring:
    """How sets of reconstructions are scored against ``reference``.

    distance, features: the names of the embeddings. memory: bytes that features may take. control:
    samples that no target guided, for ``control_gap``.
    """

    reference: ReferenceSet
    distance: str
    features: str
    memory: int
    seed: int
    fdr: float
    control: ScoredSet | None = None

    def evaluation(
        self, sets: tuple[ScoredSet, ...], distance_only: Sequence[ScoredSet] = ()
    ) -> Evaluation:
        """Return the metrics and tables of ``sets``; ``distance_only`` enter ``nearness`` alone."""
        reference, whole = self.reference, join(sets)
        metrics, columns = self._measured(whole)
        by_set = {
            one.name: _without_exposure(self._measured(one)[0] if len(sets) > 1 else metrics)
            for one in sets
        }
        owner = [one.name for one in sets for _ in one.ids]
        rows = whole.assignment.nearest_row.tolist()
        nearest = [owner[row] if row >= 0 else None for row in rows]
        columns["nearest_set"] = pd.array(nearest, dtype="string")
        if reference.groups is not None:
            columns["group"] = pd.array(reference.groups, dtype="string")
        samples = reference.table(reference.ids, reference.labels, **columns).sort_values(
            ["nearest_distance", "id"], na_position="last", ignore_index=True
        )
        holdout: pd.DataFrame | None = None
        if reference.holdout_labels is not None and whole.holdout is not None:
            holdout = reference.table(
                reference.holdout_ids, reference.holdout_labels,
                nearest_distance=nearest_distances(whole.holdout).numpy(),
            ).sort_values("id", ignore_index=True)  # fmt: skip
        near = {one.name: self._nearness(one) for one in (*sets, *distance_only)}
        return Evaluation(metrics, samples, holdout, by_set, reference, sets, near)

    def _measured(self, one: ScoredSet) -> tuple[Metrics, dict[str, object]]:
        """Return metrics.json of a set, and the ledger's columns in the order of the private images."""
        ddcs = self._ddcs(one)
        columns: dict[str, object] = {k: values.numpy() for k, values in ddcs.per_sample.items()}
        exact = columns.pop("exact_hit")
        columns |= {
            "nearest_reconstruction": pd.array(ddcs.nearest_reconstruction, dtype="string"),
            "exact_hit": exact,
            **{measure: values.numpy() for measure, values in one.pairs.items()},
        }
        risks, more = self._risk(one)
        rng = self._rng("scores/pairs")
        found = {
            **ddcs.summary,
            **self._of_features(one),
            **self._of_evaluator(one),
            **{measure: self._mean(values, rng) for measure, values in one.pairs.items()},
            **risks,
            CONTROL_GAP: self._control_gap(one),
        }
        reasons = {**_MISSING, **self.reference.missing}
        metrics = {key: found.get(key) or Summary(None, reason=reasons[key]) for key in METRICS}
        return {key: dict(one.as_json()) for key, one in metrics.items()}, {**columns, **more}

    def _ddcs(self, one: ScoredSet) -> DDCSResult:
        return ddcs_of(
            one.assignment, labels=self.reference.labels, ids=self.reference.ids,
            reconstruction_ids=one.ids, rng=self._rng("scores/ddcs"),
        )  # fmt: skip

    def _nearness(self, one: ScoredSet) -> dict[str, Summary]:
        """Return what distances alone tell of a set (see :class:`Evaluation`)."""
        mean = self._mean(nearest_distances(one.assignment), self._rng("scores/nearest"))
        return {**self._ddcs(one).summary, "nearest_distance": mean}

    def _of_features(self, one: ScoredSet) -> dict[str, Summary]:
        if self.reference.features is None or one.features is None:
            return {}
        real = Features((self.reference.features,), self.reference.labels, self.reference.ids)
        made = Features((one.features,), one.labels, one.ids)
        found: dict[str, Summary] = {}
        for result in (
            prdc(real, made, memory=self.memory, rng=self._rng("scores/prdc")),
            frechet_distance(real, made),
            kernel_distance(real, made, rng=self._rng("scores/kid")),
        ):
            found |= result.on_features(self.features).summary
        found = {key: one.with_caveat(self._small_images()) for key, one in found.items()}
        return {**found, "fid": found["frechet"]} if self.features == "inception" else found

    def _small_images(self) -> str | None:
        """Return a caveat of Inception features where images are small."""
        size = self.reference.size
        if self.features != "inception" or size is None or size >= _SMALLEST_INCEPTION:
            return None
        return (
            f"Inception was trained on photographs of 299x299, and images of {size}x{size} are enlarged to "
            "that: its features tell little about them; --features public or pixel are of their size"
        )

    def _of_evaluator(self, one: ScoredSet) -> dict[str, Summary]:
        if self.reference.evaluator is None or one.evaluator is None or one.logits is None:
            return {}
        real = Features((self.reference.evaluator,), self.reference.labels, self.reference.ids)
        made = Features((one.evaluator,), one.labels, one.ids)
        near = knn_distance(real, made, memory=self.memory, rng=self._rng("scores/knn"))
        return {**near.on_features("evaluator").summary, **accuracy(one.logits, one.labels).summary}

    def _risk(self, one: ScoredSet) -> tuple[dict[str, Summary], dict[str, object]]:
        """Return the metrics that need a holdout, and their columns."""
        reference, holdout = self.reference, one.holdout
        if reference.holdout_labels is None or holdout is None:
            return {}, {}
        try:
            check_embedding(self.distance)
        except ConfigError as error:
            found = dict.fromkeys(RISKS, Summary(None, reason=str(error)))
            unknown = torch.full((len(reference.ids),), float("nan"), dtype=torch.float64)
            columns: Mapping[str, Tensor] = dict.fromkeys(_RISK_COLUMNS, unknown)
        else:
            units = reference.of_sides(reference.units)
            covariates = reference.of_sides(reference.covariates)
            near = (
                (nearest_distances(one.assignment), reference.labels),
                (nearest_distances(holdout), reference.holdout_labels),
            )
            result = calibrate(*near, units=units, covariates=covariates, fdr=self.fdr)
            columns = result.per_sample
            nearer = distance_gap(
                *near, units=units, covariates=covariates, rng=self._rng("risk/distance-gap")
            )
            gap = leakage_gap_of(
                one.assignment, holdout, labels=reference.labels, ids=reference.ids,
                holdout_labels=reference.holdout_labels, holdout_ids=reference.holdout_ids,
                units=units, rng=self._rng("risk/gap"),
            )  # fmt: skip
            found = {**result.summary, "distance_gap": nearer, "leakage_gap": gap}
        p, q, flagged = (columns[name].numpy() for name in _RISK_COLUMNS)
        flags = pd.arrays.BooleanArray(flagged.astype(bool), np.isnan(q))
        return found, dict(zip(_RISK_COLUMNS, (p, q, flags), strict=True))

    def _control_gap(self, one: ScoredSet) -> Summary:
        """Return DDCS best of the set less that of as many of the control's images of each class."""
        reference, control = self.reference, self.control
        if reference.holdout_labels is not None:
            reason = "there is a holdout, which says more: see flagged and leakage_gap"
            return Summary(None, reason=reason)
        if control is None:
            reason = "needs samples of the prior that no target guided, which only an audit makes"
            return Summary(None, reason=reason)
        counts = one.labels.bincount(minlength=len(reference.classes))
        kept = first_of_each(control.labels, counts)
        whole = control.assignment
        as_many = replace(whole, owner=whole.owner[kept], distance=whole.distance[kept])
        return gap_to_control(
            one.assignment, as_many, labels=reference.labels, ids=reference.ids,
            rng=self._rng("scores/control"),
        )  # fmt: skip

    def _mean(self, values: Tensor, rng: torch.Generator) -> Summary:
        """Return the mean over private images that have a reconstruction in their class."""
        rows = values.isfinite().nonzero().squeeze(1)
        if len(rows) == 0:
            return Summary(None, reason="no private image has a reconstruction of its class")
        ids = [self.reference.ids[i] for i in rows.tolist()]
        order, sizes = class_order(self.reference.labels[rows], ids)
        extra = {"private_images": len(rows)}
        return mean_summary(values[rows][order], sizes, resamples=1000, rng=rng, extra=extra)

    def _rng(self, name: str) -> torch.Generator:
        return generator(self.seed, name)


def _without_exposure(metrics: Metrics) -> Metrics:
    """Return the metrics of a set alone: exposure is of an audit's first attack, not of a set."""
    return {key: one for key, one in metrics.items() if key not in EXPOSURES}
