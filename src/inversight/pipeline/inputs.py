"""The inputs of an audit: images and models, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch

from inversight.core.console import Log, Reporter
from inversight.core.errors import InputError
from inversight.data import (
    ImageSet,
    check_holdout_classes,
    check_overlap,
    check_size,
    load_digits,
    load_images,
    read_group_rule,
    with_groups,
)
from inversight.models.loading import load_target
from inversight.models.spec import ModelSpec
from inversight.models.target import Target
from inversight.pipeline.score_inputs import ScoreSettings
from inversight.settings import AuditSettings


@dataclass(frozen=True)
class Inputs:
    """The inputs that were read and checked before a run begins.

    split: the three sets in words. Private images and holdout have the classes of the given target, in
    its order. Public images may be of another size than the private ones.
    """

    private: ImageSet
    holdout: ImageSet | None
    public: ImageSet
    target: Target | None
    evaluator: Target | None
    split: str
    warnings: tuple[str, ...]


def read_inputs(
    settings: AuditSettings, reporter: Reporter, public_size: int | None = None
) -> Inputs:
    """Read and check all images and models that were given.

    Public images are brought to ``public_size``; none: to the private images' size.

    Raises:
        InputError: the first thing wrong.
    """
    if settings.private is None or settings.public is None:
        found, limit = load_digits(seed=settings.seed), settings.limit
        private, holdout = (
            keep_classes(s, s.classes[:limit]) for s in (found.private, found.holdout)
        )
        inputs = Inputs(private, holdout, found.public, None, None, found.description, ())
    else:
        inputs = _read_folders(settings, settings.private, settings.public, reporter, public_size)
    if inputs.private.size < 8:
        raise InputError("--private: images are smaller than 8x8; give --size 8 or more")
    if len(inputs.private.labels.unique()) < 2:
        raise InputError(
            "--private: has one class; a classifier needs at least two (is the folder one level "
            "too deep?)"
        )
    log = Log(reporter)
    evaluator = load_evaluator(settings, inputs.private, log)
    if evaluator and inputs.target and evaluator.classes != inputs.target.classes:
        raise InputError(
            "--evaluator and --target have different classes or class orders; give the order "
            "with --classes FILE"
        )
    classes, given = (inputs.target or inputs.private).classes, inputs.holdout
    return replace(
        inputs,
        warnings=(*inputs.warnings, *log.warnings),
        private=inputs.private.relabel(classes, role="--private"),
        holdout=None if given is None else given.relabel(classes, role="--holdout"),
        evaluator=evaluator,
    )


def load_evaluator(
    given: AuditSettings | ScoreSettings, private: ImageSet, reporter: Reporter
) -> Target | None:
    """Return the evaluator that ``given`` names, for images like the private ones; None without one.

    Raises:
        TargetError: wrong in any way.
    """
    if given.evaluator is None:
        return None
    model = ModelSpec(
        given.evaluator, classes=given.classes, trust=given.trust_target, role="--evaluator"
    )
    return load_target(
        model, classes=private.classes, size=private.size, channels=private.channels,
        warn=reporter.warn,
    )  # fmt: skip


def _read_folders(
    settings: AuditSettings, private_path: Path, public_path: Path, reporter: Reporter,
    public_size: int | None,
) -> Inputs:  # fmt: skip
    log = Log(reporter)
    rule = None if settings.group_by is None else read_group_rule(settings.group_by)
    private = read_folder(private_path, "--private", log, size=settings.size, limit=settings.limit)
    if settings.target is None:
        check_size(private.size, given=settings.size is not None)
    size = settings.size or private.size
    public = read_folder(public_path, "--public", log, size=public_size or size, labelled=False)
    sets = {"--private": private, "--public": public}
    if settings.holdout is not None:
        holdout = read_folder(settings.holdout, "--holdout", log, size=size)
        if settings.limit:
            holdout = keep_classes(holdout, private.classes)
        check_holdout_classes(holdout, private.classes, f"--holdout {settings.holdout}")
        sets["--holdout"] = holdout
    channels = max(private.channels, public.channels)
    sets = {role: s.resized(size=s.size, channels=channels) for role, s in sets.items()}
    shared = sum(
        check_overlap(a, b, (role, other), allow=settings.allow_overlap)
        for (role, a), (other, b) in combinations(sets.items(), 2)
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
        target = load_target(
            model, classes=private.classes, size=private.size, channels=channels, warn=log.warn
        )
    grouped = ""
    if rule is not None:
        real = {r.removeprefix("--"): s for r, s in sets.items() if r != "--public"}
        real, words, warning = with_groups(real, rule)
        sets |= {f"--{role}": one for role, one in real.items()}
        grouped = f"; groups: {words} ({settings.group_by})"
        if warning is not None:
            log.warn(warning)
    held = sets.get("--holdout")
    split = (
        f"private: {len(private)} images in {len(private.classes)} classes ({private_path}); "
        f"public: {len(public)} images ({public_path}); holdout: "
        + ("none" if held is None else f"{len(held)} images ({settings.holdout})")
        + grouped
    )
    private, public = sets["--private"], sets["--public"]
    return Inputs(private, held, public, target, None, split, tuple(log.warnings))


def read_folder(
    path: Path, role: str, reporter: Reporter, *, size: int | None, channels: int | None = None,
    labelled: bool = True, limit: int | None = None,
) -> ImageSet:  # fmt: skip
    """Read an image folder (:func:`inversight.data.load_images`), with progress and warnings."""
    return load_images(
        path, role=role, size=size, channels=channels, labelled=labelled, limit=limit,
        progress=reporter.stage(f"reading {role.removeprefix('--')}"), warn=reporter.warn,
    )  # fmt: skip


def keep_classes(images: ImageSet, classes: Sequence[str]) -> ImageSet:
    """Return the images whose class is among ``classes``, relabelled to the classes that remain."""
    names = [images.classes[y] for y in images.labels.tolist()]
    remaining = tuple(name for name in images.classes if name in classes)
    keep = [i for i, name in enumerate(names) if name in classes]
    labels = torch.tensor([remaining.index(names[i]) for i in keep], dtype=torch.int64)
    kept = images.select(torch.tensor(keep, dtype=torch.int64))
    return replace(kept, labels=labels, classes=remaining)
