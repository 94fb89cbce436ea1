"""The inputs of an audit: images and models, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path

import torch

from inversight.core.console import Log, Reporter
from inversight.core.errors import ConfigError, InputError
from inversight.data import (
    ImageSet,
    check_holdout_classes,
    check_overlap,
    check_size,
    load_digits,
    load_folder,
)
from inversight.models.loading import load_target
from inversight.models.spec import ModelSpec
from inversight.models.target import Target
from inversight.pipeline.score_inputs import ScoreSettings
from inversight.settings import AuditSettings


@dataclass(frozen=True)
class Inputs:
    """The inputs that were read and checked before a run begins.

    split: the three sets in words. Public images may be of another size than the private ones.
    """

    private: ImageSet
    holdout: ImageSet | None
    public: ImageSet
    target: Target | None
    evaluator: Target | None
    split: str
    warnings: tuple[str, ...]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Return the classes in the order of the given target, or else of the private folder."""
        return self.target.classes if self.target is not None else self.private.classes


def read_inputs(
    settings: AuditSettings, reporter: Reporter, public_size: int | None = None
) -> Inputs:
    """Read and check all images and models that were given.

    Public images are brought to ``public_size``; none: to the private images' size.

    Raises:
        InputError: the first thing wrong.
    """
    if settings.private is None:
        found = load_digits(seed=settings.seed)
        private, holdout, public = found.private, found.holdout, found.public
        if settings.limit:
            private, holdout = (_limited(s, settings.limit) for s in (private, holdout))
        inputs = Inputs(private, holdout, public, None, None, found.description, ())
    else:
        inputs = _read_folders(settings, reporter, public_size)
    if inputs.private.size < 8:
        raise InputError("--private: images are smaller than 8x8; give --size 8 or more")
    if len(inputs.private.labels.unique()) < 2:
        raise InputError(
            "--private: has one class; a classifier needs at least two (is the folder one level "
            "too deep?)"
        )
    evaluator = load_evaluator(settings, inputs.private)
    if evaluator and inputs.target and evaluator.classes != inputs.target.classes:
        raise InputError(
            "--evaluator and --target have different classes or class orders; give the order "
            "with --classes FILE"
        )
    classes, given = inputs.classes, inputs.holdout
    return replace(
        inputs,
        private=inputs.private.relabel(classes, role="--private"),
        holdout=None if given is None else given.relabel(classes, role="--holdout"),
        evaluator=evaluator,
    )


def load_evaluator(given: AuditSettings | ScoreSettings, private: ImageSet) -> Target | None:
    """Return the evaluator that is named in ``given``, for images like the private ones, if any is.

    Raises:
        TargetError: wrong in any way.
    """
    if given.evaluator is None:
        return None
    model = ModelSpec(
        given.evaluator, classes=given.classes, trust=given.trust_target, role="--evaluator"
    )
    return load_target(model, classes=private.classes, size=private.size, channels=private.channels)


def _limited(images: ImageSet, limit: int) -> ImageSet:
    kept = images.select((images.labels < limit).nonzero().squeeze(1))
    return replace(kept, classes=images.classes[:limit])


def _read_folders(settings: AuditSettings, reporter: Reporter, public_size: int | None) -> Inputs:
    if settings.private is None or settings.public is None:
        raise ConfigError("--private and --public are both needed")
    size, log = settings.size, Log(reporter)
    private = read_folder(
        settings.private, "--private", log, "reading private", size=size, limit=settings.limit
    )
    if settings.target is None:
        check_size(private.size, given=size is not None)
    size = size or private.size
    public = read_folder(
        settings.public, "--public", log, "reading public", size=public_size or size, labelled=False
    )
    holdout = None
    if settings.holdout is not None:
        holdout = read_folder(settings.holdout, "--holdout", log, "reading holdout", size=size)
        if settings.limit:
            holdout = keep_classes(holdout, private.classes)
        check_holdout_classes(holdout, private.classes, f"--holdout {settings.holdout}")
    channels = max(private.channels, public.channels)
    private, public = (s.resized(size=s.size, channels=channels) for s in (private, public))
    if holdout is not None:
        holdout = holdout.resized(size=holdout.size, channels=channels)
    sets = {"--private": private, "--public": public, "--holdout": holdout}
    shared = sum(
        check_overlap(a, b, (role, other), allow=settings.allow_overlap)
        for (role, a), (other, b) in combinations(sets.items(), 2)
        if a is not None and b is not None
    )
    if shared:
        log.warnings.append(
            f"{shared} image(s) are in more than one of private, holdout and public "
            "(--allow-overlap was given): the figures do not measure leakage"
        )
    target = None
    if settings.target is not None:
        model = ModelSpec(
            settings.target, classes=settings.classes, mean=settings.mean, std=settings.std,
            size=settings.size, trust=settings.trust_target,
        )  # fmt: skip
        target = load_target(model, classes=private.classes, size=private.size, channels=channels)
    split = (
        f"private: {len(private)} images in {len(private.classes)} classes ({settings.private}); "
        f"public: {len(public)} images ({settings.public}); holdout: "
        + (f"{len(holdout)} images ({settings.holdout})" if holdout is not None else "none")
    )
    return Inputs(private, holdout, public, target, None, split, tuple(log.warnings))


def read_folder(
    path: Path, role: str, reporter: Reporter, stage: str = "reading", *, size: int | None,
    channels: int | None = None, labelled: bool = True, limit: int | None = None,
) -> ImageSet:  # fmt: skip
    """Read an image folder (:func:`inversight.data.load_folder`), with progress called ``stage``."""
    return load_folder(
        path, role=role, size=size, channels=channels, labelled=labelled, limit=limit,
        progress=reporter.stage(stage), warn=reporter.warn,
    )  # fmt: skip


def keep_classes(images: ImageSet, classes: Sequence[str]) -> ImageSet:
    """Return the images whose class is among ``classes``, relabelled to the classes that remain."""
    keep = [i for i, y in enumerate(images.labels.tolist()) if images.classes[y] in classes]
    kept = images.select(torch.tensor(keep, dtype=torch.int64))
    remaining = [name for name in images.classes if name in classes]
    position = [remaining.index(name) if name in remaining else -1 for name in images.classes]
    return replace(kept, labels=torch.tensor(position)[kept.labels], classes=tuple(remaining))
