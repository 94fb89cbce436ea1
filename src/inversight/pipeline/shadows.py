"""Shadow models: trained on random halves of private and holdout images, attacked, and measured.

The unit of work is a block of a few pairs of models. It depends on the seed and the pairs' numbers alone,
is written whole to one file of distances, and is found there again: work that was stopped goes on with the
next block, and more pairs are added to those that are there.
"""

from __future__ import annotations

import copy
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from inversight.adaptation import adapt
from inversight.attacks import Attack, run_attack
from inversight.core.errors import StageError, one_line
from inversight.core.imaging import to_float, to_uint8
from inversight.core.progress import Progress, part_of, silent
from inversight.core.run import atomic_file, atomic_folder
from inversight.core.seeding import derive_seed, generator
from inversight.data import ImageSet
from inversight.embeddings import Embedding, Workspace
from inversight.models.networks import (
    Classifier,
    SavedClassifier,
    load_classifier,
    save_classifier,
)
from inversight.models.recipes import Recipe, TrainingRecipe
from inversight.models.target import Access, Target, target_of
from inversight.priors import Prior, StylePrior
from inversight.risk.design import draw_design, make_units
from inversight.scores.comparison import Labelled, compare
from inversight.settings import Adaptation

MEASURED = "measured.safetensors"
"""Name of the file of one model's distances."""
NO_ROW = -1
"""Row of the nearest reconstruction of an image whose class has none."""
_MOST_PICTURES = 64 << 20
"""Bytes of pictures that a block may keep."""
_BATCH = 256
"""Images that are classified at once."""


@dataclass(frozen=True)
class ShadowJob:
    """What all shadow models have in common.

    images: the private images by id, then the holdout's by id, with distinct ids. private: how many are
    private. twins: (N,) int64, equal numbers are near-duplicates, -1 for an image without any. recipe: None
    where no model is trained. seed: of the run. pictures: keep the nearest reconstructions, for the report.
    keep: also keep every model and all its reconstructions. access: what attackers get of the models.
    """

    images: ImageSet
    private: int
    twins: Tensor
    recipe: Recipe | None
    seed: int
    device: torch.device
    pictures: bool = False
    keep: bool = False
    access: Access = Access.WHITE_BOX

    @property
    def labels(self) -> Tensor:
        """Return the classes that have private images, (K,) int64."""
        found: Tensor = self.images.labels[: self.private].unique(sorted=True)
        return found

    @property
    def is_private(self) -> Tensor:
        """Return (N,) bool."""
        return torch.arange(len(self.images)) < self.private

    @cached_property
    def units(self) -> Tensor:
        """Return (N,) int64: images with equal numbers are drawn together, groups and near-duplicates."""
        images = self.images
        units = make_units(images.labels, images.groups, self.twins, classes=images.classes)
        return units.unit

    @torch.no_grad()
    def answers(self, model: Target) -> tuple[Tensor, Tensor]:
        """Return the model's cross-entropy (N,) float64 of each image, and whether it is right (N,)."""
        losses, correct = [], []
        for rows in torch.arange(len(self.images)).split(_BATCH):
            labels = self.images.labels[rows]
            logits = model(to_float(self.images.images[rows]).to(self.device)).double().cpu()
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
            correct.append(logits.argmax(1) == labels)
        return torch.cat(losses), torch.cat(correct)


@dataclass(frozen=True)
class ShadowAdaptation:
    """How the prior is adapted to each shadow model before the attack.

    images: the public images, uint8 (N, C, S, S), at the prior's size. metric: see
    :func:`inversight.adaptation.adapt`.
    """

    images: Tensor
    arm: str
    adaptation: Adaptation
    metric: Embedding | None

    def __call__(self, prior: Prior, target: Target, rng: torch.Generator) -> Prior:
        """Return the prior adapted to ``target``; one of the user's own as it is."""
        if not isinstance(prior, StylePrior):
            return prior
        return adapt(
            prior, target, self.images, arm=self.arm, adaptation=self.adaptation,
            training=prior.training, metric=self.metric, rng=rng,
        )  # fmt: skip


@dataclass(frozen=True)
class ShadowAttack:
    """The attack on each shadow model, with the same random numbers for all.

    several: nearest reconstructions whose distances are averaged, >= 1. adaptation: None: all models are
    attacked with the prior as it is. memory: bytes for features and distances.
    """

    name: str
    attack: Attack
    prior: Prior
    distance: Embedding
    memory: int
    several: int = 1
    adaptation: ShadowAdaptation | None = None


@dataclass(frozen=True)
class Block:
    """Pairs ``first`` to ``first + pairs - 1`` of shadow models."""

    first: int
    pairs: int

    @property
    def name(self) -> str:
        return f"pairs-{self.first:04d}-{self.first + self.pairs:04d}"

    def file(self, folder: Path) -> Path:
        """Return the file of the block's distances."""
        return folder / f"{self.name}.safetensors"

    def models(self, folder: Path) -> Path:
        """Return the folder of the block's models while they wait for their attack."""
        return folder / f"models-{self.name}"


def blocks_of(pairs: int, size: int) -> list[Block]:
    """Return the blocks of ``size`` pairs that make up ``pairs`` pairs; the last one may be smaller."""
    return [Block(first, min(size, pairs - first)) for first in range(0, pairs, size)]


@dataclass(frozen=True)
class Measured:
    """What is known of K shadow models and N images, rows in the order of :class:`ShadowJob`.

    distances: (K, N) float64, the mean to the few nearest reconstructions of the class, NaN without one.
    nearest: (K, N) float64, to the nearest alone. membership: (K, N) bool, rows 2j and 2j + 1 complementary.
    losses: (K, N) float64 >= 0, cross-entropy of each model. correct: (K, N) bool, whether the model puts the
    image in its class. rows: (K, N) int64, the picture of the nearest reconstruction in ``pictures``, or
    NO_ROW. pictures: (M, C, H, W) uint8; empty if they are not kept.
    """

    distances: Tensor
    nearest: Tensor
    membership: Tensor
    losses: Tensor
    correct: Tensor
    rows: Tensor
    pictures: Tensor

    @classmethod
    def load(cls, file: Path) -> Measured:
        """Read what :meth:`write` wrote.

        Raises:
            StageError: missing or damaged.
        """
        try:
            return cls(**load_file(file))
        except Exception as error:
            raise StageError(
                f"{file}: cannot be read ({one_line(error)}); delete it and run the command again"
            ) from error

    def write(self, file: Path) -> None:
        """Write to ``file``, which is there whole or not at all."""
        with atomic_file(file) as partial:
            save_file({k: v.contiguous() for k, v in vars(self).items()}, partial)

    @classmethod
    def read(cls, folder: Path, pairs: int, size: int) -> Measured:
        """Read the blocks of the first ``pairs`` pairs.

        Raises:
            StageError: a block is missing or damaged.
        """
        return cls.joined([cls.load(block.file(folder)) for block in blocks_of(pairs, size)])

    @classmethod
    def joined(cls, parts: Sequence[Measured]) -> Measured:
        """Return the models of all ``parts``, in order."""
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + len(part.pictures))
        rows = [
            torch.where(part.rows == NO_ROW, part.rows, part.rows + start)
            for part, start in zip(parts, starts, strict=False)
        ]
        pictures = [part.pictures for part in parts if len(part.pictures)]
        names = ("distances", "nearest", "membership", "losses", "correct")
        return cls(
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in names},
            rows=torch.cat(rows), pictures=torch.cat(pictures or [parts[0].pictures]),
        )  # fmt: skip

    def accuracy(self) -> tuple[float, float]:
        """Return the models' mean accuracy on images that they were trained on, and on the others."""
        inside, outside = self.correct[self.membership], self.correct[~self.membership]
        return float(inside.double().mean()), float(outside.double().mean())


def train_block(job: ShadowJob, block: Block, folder: Path) -> None:
    """Train the models of ``block`` ahead of their attack, unless that was done.

    Only models that are trained by this package are kept.
    """
    if not isinstance(job.recipe, TrainingRecipe) or block.file(folder).is_file():
        return
    place = block.models(folder)
    if place.is_dir():
        return
    with _claimed(folder, block) as mine:
        if mine and not place.is_dir():
            trained = _train_together(job.recipe, job, block)
            with atomic_folder(place) as partial:
                for number, one in enumerate(trained):
                    save_classifier(one, partial / f"{number}.safetensors")


def run_block(
    job: ShadowJob, attack: ShadowAttack, block: Block, folder: Path, progress: Progress = silent
) -> bool:
    """Train, attack and measure the models of ``block`` unless that was done.

    Returns whether the block is there; False if another process works on it.
    """
    file = block.file(folder)
    if file.is_file():
        return True
    with _claimed(folder, block) as mine:
        if not mine:
            return False
        if not file.is_file():
            _measure(job, attack, block, folder, progress).write(file)
            shutil.rmtree(block.models(folder), ignore_errors=True)
    return True


def seed_of(job: ShadowJob, pair: int) -> int:
    """Return the seed of both models of a pair: initial weights and batches are the same."""
    return derive_seed(job.seed, "shadow", pair)


def _halves(job: ShadowJob, block: Block) -> Tensor:
    """Return the membership (2 * pairs, N) of the block's models."""
    return draw_design(
        job.images.labels, job.units, pairs=block.pairs, seed=job.seed, first=block.first
    )


def _train_together(
    recipe: TrainingRecipe, job: ShadowJob, block: Block, progress: Progress = silent
) -> list[SavedClassifier]:
    """Train the block's models, those with equally many images at once."""
    sets = [job.images.select(half.nonzero().squeeze(1)) for half in _halves(job, block)]
    seeds = [seed_of(job, block.first + number // 2) for number in range(len(sets))]
    by_size: dict[int, list[int]] = defaultdict(list)
    for number, one in enumerate(sets):
        by_size[len(one)].append(number)
    trained: dict[int, SavedClassifier] = {}
    for numbers in by_size.values():
        part = part_of(progress, before=len(trained), share=len(numbers), whole=len(sets))
        found = recipe.fit_together(
            [sets[i] for i in numbers], seeds=[seeds[i] for i in numbers], device=job.device,
            progress=part,
        )  # fmt: skip
        trained |= dict(zip(numbers, found, strict=True))
    return [trained[number] for number in range(len(sets))]


def _models(job: ShadowJob, block: Block, folder: Path, progress: Progress) -> list[Target]:
    """Return the block's models, from their folder if they were trained ahead."""
    place = block.models(folder)
    if place.is_dir():
        files = [place / f"{number}.safetensors" for number in range(2 * block.pairs)]
        saved = [load_classifier(file) for file in files]
    elif isinstance(job.recipe, TrainingRecipe):
        saved = _train_together(job.recipe, job, block, progress)
    elif job.recipe is None:
        raise ValueError("a job without a recipe trains nothing")
    else:
        halves = _halves(job, block)
        return [
            job.recipe.fit(
                job.images.select(half.nonzero().squeeze(1)),
                seed=seed_of(job, block.first + number // 2), device=job.device,
                progress=part_of(progress, before=number, share=1, whole=len(halves)),
            ).to(job.device)
            for number, half in enumerate(halves)
        ]  # fmt: skip
    for one in saved:
        # Steps of small convolutions take a fifth less.
        one.module.to(memory_format=torch.channels_last)
    return [target_of(one, "shadow model").to(job.device) for one in saved]


def _measure(
    job: ShadowJob, attack: ShadowAttack, block: Block, folder: Path, progress: Progress
) -> Measured:
    """Train, attack and measure the models of a block."""
    models = _models(job, block, folder, part_of(progress, before=0, share=1, whole=3))
    models = [model.restricted(job.access) for model in models]
    sets = _attacked(job, attack, models, part_of(progress, before=1, share=1, whole=3))
    if job.keep:
        _keep(models, sets, block, folder)
    part = part_of(progress, before=2, share=1, whole=3)
    return _distances(job, attack, models, sets, _halves(job, block), part)


def measure_model(
    job: ShadowJob, attack: ShadowAttack, model: Target, members: Tensor,
    progress: Progress = silent,
) -> Measured:  # fmt: skip
    """Attack and measure a model that is there like a shadow model; ``members`` (N,) bool."""
    if isinstance(model.module, Classifier):  # as shadow models are, to the last bit
        module = copy.deepcopy(model.module).to(memory_format=torch.channels_last)
        model = replace(model, module=module)
    sets = _attacked(job, attack, [model], part_of(progress, before=0, share=1, whole=2))
    part = part_of(progress, before=1, share=1, whole=2)
    return _distances(replace(job, pictures=False), attack, [model], sets, members[None], part)


def _attacked(
    job: ShadowJob, attack: ShadowAttack, models: Sequence[Target], progress: Progress
) -> list[Labelled]:
    """Return each model's reconstructions."""
    sets = []
    for number, model in enumerate(models):
        prior = attack.prior
        if attack.adaptation is not None:
            prior = attack.adaptation(prior, model, generator(job.seed, "shadow-adaptation"))
        found = run_attack(
            attack.attack, model, prior, job.labels,
            rng=generator(job.seed, f"attack/{attack.name}"),
            progress=part_of(progress, before=number, share=1, whole=len(models)),
        )  # fmt: skip
        names = tuple(f"{row:06d}" for row in range(len(found)))
        sets.append(Labelled(to_uint8(found.images), found.labels, names))
    return sets


def _distances(
    job: ShadowJob, attack: ShadowAttack, models: Sequence[Target], sets: Sequence[Labelled],
    membership: Tensor, progress: Progress,
) -> Measured:  # fmt: skip
    """Measure each model's reconstructions against all images, and its losses."""
    real = Labelled(job.images.images, job.images.labels, job.images.ids)
    compared = compare(
        attack.distance, [real], sets, memory=attack.memory, several=attack.several,
        workspace=Workspace(job.device), progress=progress,
    )  # fmt: skip
    nearest = torch.stack([one.nearest for one in compared.assignments[0]])
    row = torch.stack([one.nearest_row for one in compared.assignments[0]])
    losses, correct = (torch.stack(part) for part in zip(*map(job.answers, models), strict=True))
    rows, pictures = torch.full_like(row, NO_ROW), None
    if job.pictures:
        rows, pictures = _pictures(row, sets)
    if pictures is None:
        pictures = torch.empty(0, 1, 1, 1, dtype=torch.uint8)
    return Measured(
        torch.stack(compared.several), nearest.masked_fill(row < 0, float("nan")), membership, losses,
        correct, rows, pictures,
    )  # fmt: skip


def _pictures(row: Tensor, sets: Sequence[Labelled]) -> tuple[Tensor, Tensor | None]:
    """Return the nearest reconstructions once each, and which of them is nearest to which image.

    None if they take too much room.
    """
    starts = torch.tensor([0, *(len(one.ids) for one in sets)]).cumsum(0)[:-1, None]
    used, place = torch.where(row < 0, row, row + starts).unique(return_inverse=True)
    missing = int((used < 0).sum())
    every = torch.cat([one.images for one in sets])
    if every[0].numel() * len(used) > _MOST_PICTURES:
        return torch.full_like(row, NO_ROW), None
    return (place - missing).clamp_min(NO_ROW), every[used[missing:]]


def _keep(models: Sequence[Target], sets: Sequence[Labelled], block: Block, folder: Path) -> None:
    """Write the models' weights and their reconstructions beside the block."""
    kept = folder / f"kept-{block.name}"
    shutil.rmtree(
        kept, ignore_errors=True
    )  # of a try that was stopped before its distances were there
    with atomic_folder(kept) as partial:
        for number, (model, one) in enumerate(zip(models, sets, strict=True)):
            # Copies, since a file cannot hold two names of one tensor, as of layers with common weights.
            state = {
                k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
                for k, v in model.module.state_dict().items()
            }
            save_file(state, partial / f"model-{number}.safetensors")
            save_file(
                {"images": one.images.contiguous(), "labels": one.labels.contiguous()},
                partial / f"reconstructions-{number}.safetensors",
            )


@contextmanager
def _claimed(folder: Path, block: Block) -> Iterator[bool]:
    """Hold the block against other processes; give False if one of them holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".{block.name}.lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
