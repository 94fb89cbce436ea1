"""Recipes of benchmarks/exposure.py: shadow models that are trained in other ways than the audit's target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from inversight.core.progress import Progress, silent
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.defences.base import Defence, DefenceData
from inversight.models.networks import SavedClassifier
from inversight.models.recipes import TrainingRecipe
from inversight.models.target import Target, target_of
from inversight.models.training import train_classifier
from inversight.settings import Training


@dataclass(frozen=True)
class Repeated(TrainingRecipe):
    """The audit's training with the images called ``repeated`` ``times`` times in the training set."""

    repeated: frozenset[str] = frozenset()
    times: int = 1

    def fit_together(
        self, sets: Sequence[ImageSet], *, seeds: Sequence[int], device: torch.device,
        progress: Progress = silent,
    ) -> list[SavedClassifier]:  # fmt: skip
        by_size: dict[int, list[int]] = defaultdict(list)
        changed = [self._changed(one) for one in sets]
        for number, one in enumerate(changed):
            by_size[len(one)].append(number)
        trained: dict[int, SavedClassifier] = {}
        for numbers in by_size.values():
            found = super().fit_together(
                [changed[i] for i in numbers], seeds=[seeds[i] for i in numbers], device=device,
                progress=progress,
            )  # fmt: skip
            trained |= dict(zip(numbers, found, strict=True))
        return [trained[number] for number in range(len(sets))]

    def _changed(self, images: ImageSet) -> ImageSet:
        rows = [
            row
            for row, name in enumerate(images.ids)
            for _ in range(self.times if name in self.repeated else 1)
        ]
        return images.select(torch.tensor(rows))


@dataclass(frozen=True)
class Elsewhere(TrainingRecipe):
    """The audit's training on other images in place of those that are given.

    others: disjoint from all given images. row_of: the row in ``others`` for each given image, by id.
    """

    others: ImageSet | None = None
    row_of: Mapping[str, int] | None = None

    def fit_together(
        self, sets: Sequence[ImageSet], *, seeds: Sequence[int], device: torch.device,
        progress: Progress = silent,
    ) -> list[SavedClassifier]:  # fmt: skip
        assert self.others is not None and self.row_of is not None
        row_of = self.row_of
        mapped = [
            self.others.select(torch.tensor([row_of[name] for name in one.ids])) for one in sets
        ]
        return super().fit_together(mapped, seeds=seeds, device=device, progress=progress)

    @classmethod
    def of(cls, recipe: TrainingRecipe, images: ImageSet, others: ImageSet) -> Elsewhere:
        """Map each of ``images`` to one of ``others`` of its class, in order."""
        row_of = {}
        for label in images.labels.unique().tolist():
            mine = (images.labels == label).nonzero().squeeze(1).tolist()
            theirs = (others.labels == label).nonzero().squeeze(1).tolist()
            row_of |= {
                images.ids[a]: b
                for a, b in zip(mine, theirs, strict=False)  # of the others there may be more
            }
            if len(theirs) < len(mine):
                raise SystemExit(f"third set: {len(theirs)} images of a class, needs {len(mine)}")
        return cls(recipe.training, recipe.image_shape, others, row_of)


@dataclass(frozen=True)
class Stopped:
    """The audit's training with its validation split, which ends it early."""

    training: Training
    image_shape: tuple[int, int, int]

    @property
    def description(self) -> str:
        return f"early stopping of a {self.training.architecture}"

    def fit(
        self, images: ImageSet, *, seed: int, device: torch.device, progress: Progress = silent
    ) -> Target:
        trained = train_classifier(
            images, training=self.training, image_shape=self.image_shape, rng=generator(seed),
            progress=progress, device=device,
        )  # fmt: skip
        return target_of(trained.classifier, "stopped early").to(device)


@dataclass(frozen=True)
class Defended:
    """The training of a defence, which protects every image.

    undefended: any target; training defences take no more than its access from it.
    """

    defence: Defence
    training: Training
    image_shape: tuple[int, int, int]
    public: ImageSet
    undefended: Target

    @property
    def description(self) -> str:
        return f"{type(self.defence).__name__} of a {self.training.architecture}"

    def fit(
        self, images: ImageSet, *, seed: int, device: torch.device, progress: Progress = silent
    ) -> Target:
        every = torch.ones(len(images), dtype=torch.bool)
        training = replace(self.training, validation=0.0)
        data = DefenceData(images, every, self.public, self.image_shape, training)
        found = self.defence.fit(
            data, self.undefended, rng=generator(seed), progress=progress, device=device
        )
        return found.target
