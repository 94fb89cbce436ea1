"""Scores of reconstructions against private images, shared by ``audit`` and ``score``.

What is found of each set of reconstructions (an attack's, a folder's) is small and kept, so that more
sets can be added later at the price of the new images alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from inversight.core.errors import DataError
from inversight.core.progress import Progress, silent
from inversight.data import ImageSet, join_images
from inversight.embeddings import (
    Embedding,
    Identity,
    PooledEmbedding,
    Remembering,
    StagedEmbedding,
    Workspace,
    embed,
)
from inversight.embeddings.weights import load_weights
from inversight.models.target import Target
from inversight.pipeline.metrics import (
    CONTROL_GAP,
    OF_FEATURES,
    Evaluation,
    ReferenceSet,
    Scored,
    ScoredSet,
    Scoring,
)
from inversight.risk.covariates import MOST_PUBLIC, public_covariates
from inversight.risk.signals import NEIGHBOURS
from inversight.risk.twins import Twins
from inversight.risk.units import units_of
from inversight.scores import Assignment, dists, dists_network, psnr, ssim
from inversight.scores.comparison import Labelled, compare
from inversight.scores.pairwise import SMALLEST_SSIM
from inversight.settings import DEFAULT_FDR, PairMeasure


def evaluate(
    private: ImageSet,
    sets: Mapping[str, ImageSet],
    *,
    distance: Embedding,
    features: Embedding,
    evaluator: Target | None,
    holdout: ImageSet | None,
    public: ImageSet | None = None,
    memory: int,
    seed: int,
    pairs: Sequence[PairMeasure] = ("psnr",),
    fdr: float = DEFAULT_FDR,
    control: ImageSet | None = None,
    distance_only: Mapping[str, ImageSet] | None = None,
    neighbours: bool = False,
    twins: Twins | None = None,
    earlier: Scored | None = None,
    known_features: Mapping[str, Tensor] | None = None,
    checkpoint: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Evaluation:
    """Score sets of reconstructions, each alone and all together.

    Each image goes through ``distance`` once, whatever the number of sets, where ``memory`` allows it
    (:func:`inversight.embeddings.image_pairs`); once in all if ``features`` is the same embedding, has
    no stages and its features fit into ``memory``. The result does not depend on row order. Groups of
    images, and near-duplicates among private images and holdout, count as one in the tests against the
    holdout (:func:`inversight.risk.units.units_of`). Distances to ``public`` images are covariates of these
    tests (:func:`inversight.risk.covariates.public_covariates`). For them private images and holdout go through
    ``distance`` once more if it has stages, or if their features do not fit into half of ``memory``.

    Args:
        private: holdout and ``sets``, the reconstructions by name, have its class order.
        public: images that the attacker has. They improve the tests against the holdout.
        control: samples of the prior that no target guided, at least as many of each class as
            reconstructions. They enter ``control_gap`` alone.
        distance_only: more sets that enter ``Evaluation.nearness`` alone.
        neighbours: also find each private image's distance to its class (``neighbour_distance``).
        twins: near-duplicates of private images and holdout, if they are known
            (:func:`inversight.risk.units.units_of`).
        earlier: another evaluation's reference and sets against the same private images with the same
            embeddings. Its sets count as well.
        known_features: (D,) each, by image of ``sets``: features in ``distance`` that an attack found instead
            of the image. An embedding without stages is needed for it.
        checkpoint: folder in which distances are kept from time to time and found again.

    Raises:
        DataError: a reconstruction is of a class that private does not have.
        StageError: an embedding returned a NaN or an infinity.
    """
    more = dict(distance_only or {})
    for one in (*sets.values(), *more.values()):
        check_classes(private, one)
    if control is not None:
        more[CONTROL_GAP] = control
    private = _by_id(private)
    holdout = _by_id(holdout) if holdout is not None else None
    sets = {name: _by_id(images) for name, images in sets.items()}
    more = {name: _by_id(images) for name, images in more.items()}
    judge = None if evaluator is None else PooledEmbedding("evaluator", evaluator)
    known: ImageSet | None = None
    if earlier is None and holdout is not None and distance.name != "evaluator":
        known = public
    seen: Remembering | None = None  # the distance, with the features of private images and holdout
    if known is not None and holdout is not None and not isinstance(distance, StagedEmbedding):
        count = len(private) + len(holdout) + min(len(known), MOST_PUBLIC)
        if 2 * 4 * _width(distance, private, device) * count <= memory:
            seen = Remembering(distance)
    vectors = _Vectors(seen if seen and features == distance else features, judge, device, progress)
    found_instead = dict(known_features or {})
    compared_as = (
        vectors if features == distance else _Vectors(seen or distance, judge, device, progress)
    )
    for one in sets.values():
        if found_instead and set(one.ids) <= found_instead.keys():
            compared_as.set_features(one, torch.stack([found_instead[i] for i in one.ids]))
    if earlier is not None:
        reference = earlier[0]
    else:
        total = len(private) + sum(map(len, sets.values()))
        reference = _reference(private, holdout, vectors, total, memory)
        if holdout is not None:
            units = units_of(private, holdout, twins=twins, progress=progress)
            reference = replace(reference, units=units.unit)
        if known is not None:
            covariates = public_covariates(
                join_images(private, holdout), known, seen or distance, memory=memory, seed=seed,
                workspace=Workspace(device), progress=progress,
            )  # fmt: skip
            reference = replace(reference, covariates=covariates)
    if seen is not None:
        seen.full = True  # reconstructions are compared once

    real = [private] if holdout is None else [private, holdout]
    fits = "coverage" not in reference.missing
    # If features are needed anyway, distances between them need no second pass.
    shared = features == distance and not isinstance(distance, StagedEmbedding) and fits
    shared = shared or bool(found_instead)
    compared = [
        [
            Labelled(compared_as.of_features(s) if shared else s.images, s.labels, s.ids)
            for s in group
        ]
        for group in (real, [*sets.values(), *more.values()])
    ]
    file = None if checkpoint is None else checkpoint / "distances.safetensors"
    found = compare(
        Identity(distance.name) if shared else seen or distance, *compared, memory=memory,
        neighbours=NEIGHBOURS if neighbours else 0, workspace=Workspace(device), checkpoint=file,
        progress=progress,
    )  # fmt: skip
    if neighbours:
        reference = replace(reference, neighbour_distance=found.neighbour_distance)
    scored = list(earlier[1]) if earlier is not None else []
    wanted = [m for m in pairs if m not in reference.missing]
    for number, (name, one) in enumerate(sets.items()):
        assignment = found.assignments[0][number]
        judged, logits = vectors.of_evaluator(one)
        scored.append(
            ScoredSet(
                name, one.ids, one.labels, assignment,
                holdout=None if holdout is None else found.assignments[1][number],
                features=None if reference.features is None else vectors.of_features(one),
                evaluator=judged, logits=logits, pairs=_pairs(private, one, assignment, wanted),
            )
        )  # fmt: skip
    others = {
        name: ScoredSet(name, one.ids, one.labels, found.assignments[0][number])
        for number, (name, one) in enumerate(more.items(), start=len(sets))
    }
    unguided = others.pop(CONTROL_GAP, None)
    if file is not None:
        file.unlink(missing_ok=True)
    scoring = Scoring(reference, distance.name, features.name, memory, seed, fdr, unguided)
    return scoring.evaluation(tuple(scored), tuple(others.values()))


def check_pairs(wanted: Sequence[PairMeasure]) -> None:
    """Check before anything long that the pair measures can be computed.

    Raises:
        WeightsError: the published weights that one needs are missing.
    """
    if "dists" in wanted:
        load_weights("vgg16")


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


@dataclass(frozen=True)
class _Vectors:
    """Feature vectors of image sets, which must stay alive; each goes through each network once."""

    features: Embedding
    evaluator: PooledEmbedding | None
    device: torch.device | str
    progress: Progress
    _features: dict[int, Tensor] = field(default_factory=dict)
    _evaluator: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def of_features(self, images: ImageSet) -> Tensor:
        """Return the features (N, D) that coverage and Frechet distances are computed on."""
        if self.evaluator is not None and self.features == self.evaluator:
            return self._judged(images, self.evaluator)[0]
        if id(images) not in self._features:
            found = embed(self.features, images, device=self.device, progress=self.progress)
            self._features[id(images)] = found.flat()
        return self._features[id(images)]

    def set_features(self, images: ImageSet, features: Tensor) -> None:
        """Take ``features`` (N, D) for those of ``images``, in their order."""
        self._features[id(images)] = features.float()

    def of_evaluator(self, images: ImageSet) -> tuple[Tensor | None, Tensor | None]:
        """Return the evaluator's penultimate features (N, D) and logits (N, K), if there is one."""
        return (None, None) if self.evaluator is None else self._judged(images, self.evaluator)

    @torch.no_grad()
    def _judged(self, images: ImageSet, evaluator: PooledEmbedding) -> tuple[Tensor, Tensor]:
        if id(images) not in self._evaluator:
            rows = torch.arange(len(images)).split(64)
            batches = (images.select(index).floats().to(self.device) for index in rows)
            parts = [evaluator.with_logits(batch) for batch in batches]
            features, logits = (
                torch.cat([part.float().cpu() for part in column])
                for column in zip(*parts, strict=True)
            )
            self._evaluator[id(images)] = features, logits
        return self._evaluator[id(images)]


def _width(embedding: Embedding, images: ImageSet, device: torch.device | str) -> int:
    """Return the number of values in the features of one of ``images``, measured on a blank one."""
    first = images.select(torch.tensor([0]))
    blank = replace(first, images=torch.zeros_like(first.images))
    return embed(embedding, blank, device=device).flat().shape[1]


def _reference(
    private: ImageSet, holdout: ImageSet | None, vectors: _Vectors, images: int, memory: int
) -> ReferenceSet:
    """Return the private images' vectors; no features if those of all ``images`` do not fit in memory."""
    needed = 4 * _width(vectors.features, private, vectors.device) * images
    missing = {}
    if needed > memory:
        reason = (
            f"features {vectors.features.name} of {images} images take {needed / 2**30:.1f} GiB, more "
            "than --memory; give --features inception or public, which are vectors"
        )
        missing = dict.fromkeys(OF_FEATURES, reason)
    if private.size < SMALLEST_SSIM:
        missing["ssim"] = (
            f"needs images of at least {SMALLEST_SSIM} pixels a side, found "
            f"{private.size}x{private.size}"
        )
    return ReferenceSet(
        ids=private.ids, labels=private.labels, classes=private.classes,
        holdout_ids=() if holdout is None else holdout.ids,
        holdout_labels=None if holdout is None else holdout.labels,
        features=None if needed > memory else vectors.of_features(private),
        evaluator=vectors.of_evaluator(private)[0], missing=missing, groups=private.groups,
        size=private.size,
    )  # fmt: skip


def _pairs(
    private: ImageSet, images: ImageSet, assignment: Assignment, wanted: Sequence[PairMeasure]
) -> dict[str, Tensor]:
    """Return pair measures of each private image and its nearest reconstruction; NaN without one."""
    unknown = torch.full((len(private),), float("nan"), dtype=torch.float64)
    found: dict[str, Tensor] = {measure: unknown.clone() for measure in wanted}
    measures: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"psnr": psnr, "ssim": ssim}
    if "dists" in wanted:
        measures["dists"] = partial(dists, network=dists_network(load_weights("vgg16")))
    rows = (assignment.nearest_row >= 0).nonzero().squeeze(1)
    for part in rows.split(64):
        a = private.select(part).floats()
        nearest = images.select(assignment.nearest_row[part])
        b = nearest.floats(size=private.size, channels=private.channels)
        for measure in wanted:
            found[measure][part] = measures[measure](a, b)
    return found


def _by_id(images: ImageSet) -> ImageSet:
    """Return the rows in the order of their ids, so that their given order does not matter."""
    order = sorted(range(len(images)), key=images.ids.__getitem__)
    return images if order == list(range(len(images))) else images.select(torch.tensor(order))
