"""Scores of reconstructions against private images: what ``audit`` and ``score`` share.

Each set of reconstructions (an attack's, a folder's) is compared on its own, and what was found of it
is small and kept, so that more sets can be added later at the price of the new images alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from inversight.core.errors import ConfigError, DataError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.embeddings import Embedding, PooledEmbedding, Workspace, embed, image_pairs
from inversight.embeddings.base import Features
from inversight.embeddings.weights import load_weights
from inversight.models.target import Target
from inversight.risk import calibrate, check_embedding, leakage_gap_of
from inversight.scores import (
    Assigner,
    Assignment,
    Summary,
    accuracy,
    ddcs_of,
    dists,
    dists_network,
    first_of_each,
    frechet_distance,
    gap_to_control,
    kernel_distance,
    knn_distance,
    prdc,
    psnr,
    ssim,
    union,
)
from inversight.scores.bootstrap import interval_of_means
from inversight.scores.pairwise import SMALLEST_SSIM
from inversight.settings import DEFAULT_FDR, PAIR_MEASURES, PairMeasure

_CHECKPOINT_SECONDS = 30.0
_UNSEEN = "holdout/"


_NO_EVALUATOR = "needs an evaluator: give --evaluator"
_NO_INCEPTION = "defined on Inception features only: give --features inception"
_NO_HOLDOUT = "needs a holdout: give --holdout"
_HOLDOUT = "there is a holdout, which says more: see flagged and leakage_gap"
_NO_CONTROL = "needs samples of the prior that no target guided, which only an audit makes"
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
    "kid",
    "knn_distance",
    "accuracy_top1",
    "accuracy_top5",
    "psnr",
    "ssim",
    "dists",
    "flagged",
    "leakage_gap",
    "control_gap",
)
"""Keys of metrics.json, in its order."""

OF_FEATURES = ("coverage", "density", "precision", "recall", "frechet", "kid")
"""Those that are computed on feature vectors."""

RISKS = ("flagged", "leakage_gap")
"""Those that need a holdout."""

CONTROL_GAP = "control_gap"
"""The one that needs to have none."""


@dataclass(frozen=True)
class Subjects:
    """What reconstructions are compared with: private images and holdout, by name, and their vectors.

    labels index ``classes``. features, evaluator: (N, D) of the private images in the order of
    ``ids``, or None where there are none. missing: why metrics cannot be computed, by key.
    """

    ids: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    holdout_ids: tuple[str, ...] = ()
    holdout_labels: Tensor | None = None
    features: Tensor | None = None
    evaluator: Tensor | None = None
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoredSet:
    """What is kept of one set of reconstructions.

    assignment: to the private images; holdout: to the holdout images, None without any. features,
    evaluator: (M, D). logits: (M, K), the evaluator's. pairs: for each pair measure (N,) float64, of
    each private image and its nearest reconstruction in this set.
    """

    name: str
    ids: tuple[str, ...]
    labels: Tensor
    assignment: Assignment
    holdout: Assignment | None
    features: Tensor | None
    evaluator: Tensor | None
    logits: Tensor | None
    pairs: Mapping[str, Tensor]


@dataclass(frozen=True)
class Evaluation:
    """metrics: metrics.json. samples: samples.parquet, one row for each private image, most exposed
    first. holdout: id, label and nearest distance of holdout images, if there are any. by_set: each
    set's own metrics. subjects, sets: what more reconstructions can be added to."""

    metrics: dict[str, dict[str, object]]
    samples: pd.DataFrame
    holdout: pd.DataFrame | None
    by_set: dict[str, dict[str, dict[str, object]]]
    subjects: Subjects
    sets: tuple[ScoredSet, ...]


def evaluate(
    private: ImageSet,
    reconstructions: Mapping[str, ImageSet],
    *,
    distance: Embedding,
    features: Embedding,
    evaluator: Target | None,
    holdout: ImageSet | None,
    memory: int,
    seed: int,
    pairs: Sequence[PairMeasure] = ("psnr",),
    fdr: float = DEFAULT_FDR,
    control: ImageSet | None = None,
    earlier: tuple[Subjects, tuple[ScoredSet, ...]] | None = None,
    checkpoint: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Evaluation:
    """Score sets of reconstructions, each alone and all together. Independent of row order.

    All sets share the private images' class order. ``control`` are samples of the prior that no
    target guided, at least as many of each class as reconstructions, and enter ``control_gap`` alone.
    ``earlier`` are the subjects and sets of another
    evaluation against the same private images with the same embeddings, which count as well.
    ``checkpoint`` is a folder in which distances are kept from time to time and found again.

    Raises:
        DataError: a reconstruction of a class that private does not have.
        StageError: an embedding gave a NaN or an infinity.
    """
    for made in reconstructions.values():
        check_classes(private, made)
    private = _by_id(private)
    holdout = _by_id(holdout) if holdout is not None else None
    judge = PooledEmbedding("evaluator", evaluator) if evaluator is not None else None
    if earlier is not None:
        subjects = earlier[0]
    else:
        total = len(private) + sum(len(s) for s in reconstructions.values())
        subjects = _subjects(private, holdout, features, judge, total, memory, device, progress)
    ours = _Ours(private, holdout)
    work = Workspace(device)
    scored = list(earlier[1]) if earlier is not None else []
    files = []
    for number, (name, made) in enumerate(reconstructions.items()):
        file = None if checkpoint is None else checkpoint / f"distances-{number}.safetensors"
        one = _score_set(
            name, _by_id(made), ours, subjects, distance, features, judge, memory=memory,
            pairs=pairs, checkpoint=file, device=device, work=work, progress=progress,
        )  # fmt: skip
        scored.append(one)
        files.append(file)
    unguided: ScoredSet | None = None
    if control is not None:
        file = None if checkpoint is None else checkpoint / "distances-control.safetensors"
        unguided = _score_set(
            "control", _by_id(control), ours, replace(subjects, features=None), distance, features,
            None, memory=memory, pairs=(), checkpoint=file, device=device, work=work,
            progress=progress,
        )  # fmt: skip
        files.append(file)
    for file in files:
        if file is not None:
            file.unlink(missing_ok=True)
    return summarise(
        subjects, tuple(scored), distance_name=distance.name, features_name=features.name,
        memory=memory, seed=seed, fdr=fdr, control=unguided,
    )  # fmt: skip


def nearness(
    private: ImageSet,
    made: ImageSet,
    *,
    distance: Embedding,
    memory: int,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> dict[str, Summary]:
    """What distances alone say of one set of reconstructions: ddcs_best, ddcs_average, covered, and
    nearest_distance, the mean over private images that have a reconstruction in their class.

    Raises:
        DataError: a reconstruction of a class that private does not have.
        StageError: an embedding gave a NaN or an infinity.
    """
    check_classes(private, made)
    private, made = _by_id(private), _by_id(made)
    subjects = Subjects(ids=private.ids, labels=private.labels, classes=private.classes)
    one = _score_set(
        "reconstructions", made, _Ours(private, None), subjects, distance, distance, None,
        memory=memory, pairs=(), checkpoint=None, device=device, work=Workspace(device),
        progress=progress,
    )  # fmt: skip
    found = ddcs_of(
        one.assignment,
        labels=subjects.labels,
        ids=subjects.ids,
        reconstruction_ids=made.ids,
        rng=generator(seed, "scores/ddcs"),
    )
    mean = _mean(_nearest(one.assignment), subjects, generator(seed, "scores/nearest"))
    return {**found.summary, "nearest_distance": mean}


def summarise(
    subjects: Subjects,
    sets: tuple[ScoredSet, ...],
    *,
    distance_name: str,
    features_name: str,
    memory: int,
    seed: int,
    fdr: float,
    control: ScoredSet | None = None,
) -> Evaluation:
    """Metrics and tables from what was kept of each set, and of the control's."""

    def measures(made: ScoredSet) -> tuple[dict[str, dict[str, object]], dict[str, object]]:
        metrics, columns = _measures(subjects, made, features_name, memory, seed)
        found, more = _risk(subjects, made, distance_name, fdr, seed)
        gap = _control_gap(subjects, made, control, seed)
        return {**metrics, **found, CONTROL_GAP: dict(gap.as_json())}, {**columns, **more}

    everything = join(sets)
    metrics, columns = measures(everything)
    by_set = {one.name: measures(one)[0] if len(sets) > 1 else metrics for one in sets}
    owner = [one.name for one in sets for _ in one.ids]
    nearest = everything.assignment.nearest_row.tolist()
    frame = pd.DataFrame(
        {
            "id": subjects.ids,
            "label": [subjects.classes[i] for i in subjects.labels.tolist()],
            **columns,
            "nearest_set": pd.array(
                [owner[row] if row >= 0 else None for row in nearest], dtype="string"
            ),
        }
    ).sort_values(["nearest_distance", "id"], na_position="last", ignore_index=True)
    unseen: pd.DataFrame | None = None
    if subjects.holdout_labels is not None and everything.holdout is not None:
        unseen = pd.DataFrame(
            {
                "id": subjects.holdout_ids,
                "label": [subjects.classes[i] for i in subjects.holdout_labels.tolist()],
                "nearest_distance": _nearest(everything.holdout).numpy(),
            }
        ).sort_values("id", ignore_index=True)
    return Evaluation(metrics, frame, unseen, by_set, subjects, sets)


def join(sets: Sequence[ScoredSet]) -> ScoredSet:
    """Several sets against the same private images as one."""
    if len(sets) == 1:
        return sets[0]
    names = [s.ids for s in sets]
    assignment = union([s.assignment for s in sets], names)
    held = [s.holdout for s in sets if s.holdout is not None]
    start = torch.tensor([0, *(len(s.ids) for s in sets)]).cumsum(0)
    # Which set the nearest one is of; any of them where there is none.
    which = torch.bucketize(assignment.nearest_row, start[1:-1], right=True)

    def together(field: str) -> Tensor | None:
        parts = [getattr(s, field) for s in sets]
        return None if any(p is None for p in parts) else torch.cat(parts)

    measured = [m for m in PAIR_MEASURES if all(m in s.pairs for s in sets)]
    return ScoredSet(
        name="all",
        ids=tuple(i for s in sets for i in s.ids),
        labels=torch.cat([s.labels for s in sets]),
        assignment=assignment,
        holdout=union(held, names) if held else None,
        features=together("features"),
        evaluator=together("evaluator"),
        logits=together("logits"),
        pairs={
            m: torch.stack([s.pairs[m] for s in sets]).gather(0, which[None]).squeeze(0)
            for m in measured
        },
    )


def check_pairs(wanted: Sequence[PairMeasure]) -> None:
    """Find out before anything long whether the pair measures can be had.

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


class _Ours:
    """Private images and, behind them, the holdout, class by class: compared in one go."""

    def __init__(self, private: ImageSet, holdout: ImageSet | None) -> None:
        self.private = private
        self.images = private.images
        self.labels = private.labels
        self.names = private.ids
        if holdout is not None:
            self.images = torch.cat([self.images, holdout.images])
            self.labels = torch.cat([self.labels, holdout.labels])
            self.names = private.ids + holdout.ids

    def rows(self, label: int) -> Tensor:
        return (self.labels == label).nonzero().squeeze(1)


def _subjects(
    private: ImageSet,
    holdout: ImageSet | None,
    features: Embedding,
    judge: PooledEmbedding | None,
    images: int,
    memory: int,
    device: torch.device | str,
    progress: Progress,
) -> Subjects:
    width = sum(
        b.numel() for b in embed(features, private.select(torch.tensor([0])), device=device).blocks
    )
    needed = 4 * width * images
    missing = {}
    if needed > memory:
        reason = (
            f"features {features.name} of {images} images take {needed / 2**30:.1f} GiB, more than "
            "--memory; give --features inception or public, which are vectors"
        )
        missing = dict.fromkeys(OF_FEATURES, reason)
    if private.size < SMALLEST_SSIM:
        missing["ssim"] = (
            f"needs images of at least {SMALLEST_SSIM} pixels a side, found "
            f"{private.size}x{private.size}"
        )
    return Subjects(
        ids=private.ids,
        labels=private.labels,
        classes=private.classes,
        holdout_ids=() if holdout is None else holdout.ids,
        holdout_labels=None if holdout is None else holdout.labels,
        features=None
        if needed > memory
        else embed(features, private, device=device, progress=progress).flat(),
        evaluator=None if judge is None else _judged(judge, private, device)[0],
        missing=missing,
    )


def _score_set(
    name: str,
    made: ImageSet,
    ours: _Ours,
    subjects: Subjects,
    distance: Embedding,
    features: Embedding,
    judge: PooledEmbedding | None,
    *,
    memory: int,
    pairs: Sequence[PairMeasure],
    checkpoint: Path | None,
    device: torch.device | str,
    work: Workspace,
    progress: Progress,
) -> ScoredSet:
    private = len(subjects.ids)
    assigner = Assigner(subjects.ids, made.ids)
    unseen = Assigner(subjects.holdout_ids, made.ids)
    classes = made.labels.unique().tolist()
    total = len(made) + int(torch.isin(ours.labels, made.labels).sum())
    done, compared = 0, torch.empty(0, dtype=torch.int64)
    if checkpoint is not None and checkpoint.is_file():
        state = load_file(checkpoint)
        assigner.restore(state)
        unseen.restore({k.removeprefix(_UNSEEN): v for k, v in state.items() if _UNSEEN in k})
        compared = state["compared"]
        done = int(
            torch.isin(ours.labels, compared).sum() + torch.isin(made.labels, compared).sum()
        )
    saved = time.monotonic()
    for label in classes:
        if bool((compared == label).any()):
            continue
        rows, columns = ours.rows(label), (made.labels == label).nonzero().squeeze(1)

        def seen(images: int) -> None:
            nonlocal done
            # Images that go through the network again, for want of memory, are not counted twice.
            done = min(done + images, total)
            progress(done, total, f"{name}: {distance.name}")

        def named(is_left: bool, row: int, rows: Tensor = rows, columns: Tensor = columns) -> str:
            return ours.names[int(rows[row])] if is_left else made.ids[int(columns[row])]

        for tile in image_pairs(
            distance, ours.images[rows], made.images[columns],
            memory=memory, device=device, workspace=work, names=named, seen=seen,
        ):  # fmt: skip
            at = rows[tile.left]
            mine = at < private
            if bool(mine.any()):
                assigner.see(at[mine], columns[tile.right], tile.distances[mine])
            if not bool(mine.all()):
                unseen.see(at[~mine] - private, columns[tile.right], tile.distances[~mine])
        compared = torch.cat([compared, torch.tensor([label])])
        if checkpoint is not None and time.monotonic() - saved > _CHECKPOINT_SECONDS:
            # Whole classes only, so that what goes on is what would have been.
            state = {**assigner.state(), "compared": compared}
            state |= {f"{_UNSEEN}{k}": v for k, v in unseen.state().items()}
            partial = checkpoint.with_name(f".{checkpoint.name}.partial")
            save_file({k: v.contiguous() for k, v in state.items()}, partial)
            partial.replace(checkpoint)
            saved = time.monotonic()
    assignment = assigner.result()
    judged = (None, None) if judge is None else _judged(judge, made, device)
    return ScoredSet(
        name=name,
        ids=made.ids,
        labels=made.labels,
        assignment=assignment,
        holdout=None if subjects.holdout_labels is None else unseen.result(),
        features=None
        if subjects.features is None
        else embed(features, made, device=device, progress=progress).flat(),
        evaluator=judged[0],
        logits=judged[1],
        pairs=_pairs(
            ours.private, made, assignment, [m for m in pairs if m not in subjects.missing]
        ),
    )


def _pairs(
    private: ImageSet, made: ImageSet, assignment: Assignment, wanted: Sequence[PairMeasure]
) -> dict[str, Tensor]:
    """Each private image and its nearest reconstruction, by pair measures; NaN without one."""
    found: dict[str, Tensor] = {
        m: torch.full((len(private),), float("nan"), dtype=torch.float64) for m in wanted
    }
    rows = (assignment.nearest_row >= 0).nonzero().squeeze(1)
    network = dists_network(load_weights("vgg16")) if "dists" in wanted else None
    for part in rows.split(64):
        a = private.select(part).floats()
        b = made.select(assignment.nearest_row[part]).floats(
            size=private.size, channels=private.channels
        )
        for measure in wanted:
            if network is not None and measure == "dists":
                value = dists(a, b, network=network)
            else:
                value = psnr(a, b) if measure == "psnr" else ssim(a, b)
            found[measure][part] = value
    return found


def _measures(
    subjects: Subjects, made: ScoredSet, features_name: str, memory: int, seed: int
) -> tuple[dict[str, dict[str, object]], dict[str, object]]:
    """metrics.json, and the ledger's columns in the order of the subjects."""
    scored = ddcs_of(
        made.assignment,
        labels=subjects.labels,
        ids=subjects.ids,
        reconstruction_ids=made.ids,
        rng=generator(seed, "scores/ddcs"),
    )
    found: dict[str, Summary] = dict(scored.summary)
    missing: dict[str, str] = {
        "fid": _NO_INCEPTION,
        "knn_distance": _NO_EVALUATOR,
        "accuracy_top1": _NO_EVALUATOR,
        "accuracy_top5": _NO_EVALUATOR,
    }
    for measure in PAIR_MEASURES:
        missing[measure] = f"was not asked for: give --pairs {measure}"
    if subjects.features is not None and made.features is not None:
        a = Features((subjects.features,), subjects.labels, subjects.ids)
        b = Features((made.features,), made.labels, made.ids)
        spread = prdc(a, b, memory=memory, rng=generator(seed, "scores/prdc"))
        found |= spread.on_features(features_name).summary
        frechet = frechet_distance(a, b).on_features(features_name).summary["frechet"]
        found["frechet"] = frechet
        kernel = kernel_distance(a, b, rng=generator(seed, "scores/kid"))
        found |= kernel.on_features(features_name).summary
        if features_name == "inception":
            found["fid"] = frechet
    else:
        missing |= dict.fromkeys(
            OF_FEATURES, "the features of sets that were scored before are too wide to be kept"
        )
    if subjects.evaluator is not None and made.evaluator is not None and made.logits is not None:
        a = Features((subjects.evaluator,), subjects.labels, subjects.ids)
        b = Features((made.evaluator,), made.labels, made.ids)
        rng = generator(seed, "scores/knn")
        found |= knn_distance(a, b, memory=memory, rng=rng).on_features("evaluator").summary
        found |= accuracy(made.logits, made.labels).summary
    missing |= subjects.missing
    rng = generator(seed, "scores/pairs")
    for key, values in made.pairs.items():
        found[key] = _mean(values, subjects, rng)
    metrics: dict[str, dict[str, object]] = {
        key: dict(found[key].as_json())
        if key in found
        else {"value": None, "low": None, "high": None, "reason": missing[key]}
        for key in METRICS
        if key not in (*RISKS, CONTROL_GAP)
    }
    columns: dict[str, object] = {
        "ddcs_best": scored.per_sample["ddcs_best"].numpy(),
        "ddcs_average": scored.per_sample["ddcs_average"].numpy(),
        "reconstructions": scored.per_sample["reconstructions"].numpy(),
        "nearest_distance": scored.per_sample["nearest_distance"].numpy(),
        "nearest_reconstruction": pd.array(scored.nearest_reconstruction, dtype="string"),
        "exact_hit": scored.per_sample["exact_hit"].numpy(),
        **{measure: values.numpy() for measure, values in made.pairs.items()},
    }
    return metrics, columns


def _risk(
    subjects: Subjects, made: ScoredSet, distance_name: str, fdr: float, seed: int
) -> tuple[dict[str, dict[str, object]], dict[str, object]]:
    """What the holdout says: keys of metrics.json and, where there is a holdout, columns."""
    labels, unseen = subjects.holdout_labels, made.holdout
    if labels is None or unseen is None:
        none = Summary(None, reason=_NO_HOLDOUT)
        return {key: dict(none.as_json()) for key in RISKS}, {}
    images = len(subjects.ids)
    columns: dict[str, Tensor] = {
        "p_value": torch.full((images,), float("nan"), dtype=torch.float64),
        "q_value": torch.full((images,), float("nan"), dtype=torch.float64),
        "flagged": torch.zeros(images, dtype=torch.bool),
    }
    try:
        check_embedding(distance_name)
    except ConfigError as error:
        found = dict.fromkeys(RISKS, Summary(None, reason=str(error)))
    else:
        ours, theirs = (_nearest(a) for a in (made.assignment, unseen))
        judged = calibrate((ours, subjects.labels), (theirs, labels), fdr=fdr)
        columns = dict(judged.per_sample)
        gap = leakage_gap_of(
            made.assignment,
            unseen,
            labels=subjects.labels,
            ids=subjects.ids,
            holdout_labels=labels,
            holdout_ids=subjects.holdout_ids,
            reconstruction_ids=made.ids,
            rng=generator(seed, "risk/gap"),
        )
        found = {**judged.summary, "leakage_gap": gap}
    unknown = columns["q_value"].isnan().numpy()
    return {key: dict(found[key].as_json()) for key in RISKS}, {
        "p_value": columns["p_value"].numpy(),
        "q_value": columns["q_value"].numpy(),
        "flagged": pd.arrays.BooleanArray(columns["flagged"].numpy(), unknown),
    }


def _control_gap(
    subjects: Subjects, made: ScoredSet, control: ScoredSet | None, seed: int
) -> Summary:
    """DDCS best by ``made`` less that by as many of the control's images of each class."""
    if subjects.holdout_labels is not None:
        return Summary(None, reason=_HOLDOUT)
    if control is None:
        return Summary(None, reason=_NO_CONTROL)
    counts = made.labels.bincount(minlength=len(subjects.classes))
    kept = first_of_each(control.labels, counts)
    as_many = replace(
        control.assignment,
        owner=control.assignment.owner[kept],
        distance=control.assignment.distance[kept],
    )
    ids = tuple(control.ids[i] for i in kept.tolist())
    return gap_to_control(
        made.assignment,
        as_many,
        labels=subjects.labels,
        ids=subjects.ids,
        reconstruction_ids=made.ids,
        control_ids=ids,
        rng=generator(seed, "scores/control"),
    )


def _nearest(assignment: Assignment) -> Tensor:
    """Nearest distances, NaN where the class has no reconstruction."""
    nearest = assignment.nearest
    return nearest.where(nearest.isfinite(), torch.full_like(nearest, float("nan")))


def _mean(values: Tensor, subjects: Subjects, rng: torch.Generator) -> Summary:
    """The mean over private images that have a reconstruction in their class."""
    rows = torch.tensor(
        sorted(
            values.isfinite().nonzero().squeeze(1).tolist(),
            key=lambda i: (int(subjects.labels[i]), subjects.ids[i]),
        )
    )
    if len(rows) == 0:
        return Summary(None, reason="no private image has a reconstruction of its class")
    kept = values[rows]
    _, sizes = subjects.labels[rows].unique_consecutive(return_counts=True)
    [(low, high)] = interval_of_means(kept[:, None], sizes, resamples=1000, rng=rng)
    return Summary(float(kept.mean()), low, high, extra={"private_images": len(rows)})


@torch.no_grad()
def _judged(
    judge: PooledEmbedding, images: ImageSet, device: torch.device | str, batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """The evaluator's penultimate features (N, D) and logits (N, K), on the CPU, in row order."""
    features: list[Tensor] = []
    logits: list[Tensor] = []
    for index in torch.arange(len(images)).split(batch_size):
        found = judge.with_logits(images.select(index).floats().to(device))
        for kept, part in zip((features, logits), found, strict=True):
            kept.append(part.float().cpu())
    return torch.cat(features), torch.cat(logits)


def _by_id(images: ImageSet) -> ImageSet:
    """Rows in the order of their ids, so that nothing depends on how they came."""
    order = sorted(range(len(images)), key=images.ids.__getitem__)
    return images if order == list(range(len(images))) else images.select(torch.tensor(order))
