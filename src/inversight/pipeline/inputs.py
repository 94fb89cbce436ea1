"""The inputs of an audit: images and models, read and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import torch

from inversight.attacks.endpoint import Endpoint
from inversight.core.console import Log, Reporter
from inversight.core.errors import ConfigError, InputError
from inversight.core.imaging import Size
from inversight.core.progress import Progress, silent
from inversight.data import (
    ImageSet,
    check_holdout_classes,
    check_overlap,
    check_size,
    column_rule,
    join_images,
    load_digits,
    load_images,
    read_group_rule,
    read_splits,
    split_path,
    with_groups,
)
from inversight.models.loading import load_target
from inversight.models.spec import ModelSpec
from inversight.models.target import Access, Target
from inversight.pipeline.score_inputs import ScoreSettings
from inversight.pipeline.service import open_target
from inversight.risk.twins import Twins, find_near_copies, find_twins
from inversight.settings import AuditSettings

T = TypeVar("T")

_NAMED = 3
"""Near-copies that a warning names; it counts the others."""

_BECAUSE = {
    ("--private", "--holdout"): "a holdout like that hides a leak",
    ("--private", "--public"): "an attacker who has them needs no model",
    ("--holdout", "--public"): "reconstructions come near the holdout without a leak",
}
"""What near-copies between two sets do."""

_SPLIT_ROLES = {
    "private": ("train", "training", "private"),
    "holdout": ("test", "testing", "t10k", "holdout"),
    "public": ("val", "valid", "validation", "dev", "public"),
}
"""Names of splits, in lower case, that tell whose images they are."""


@dataclass(frozen=True)
class Inputs:
    """The inputs that were read and checked before a run begins.

    split: the three sets in words. Private images and holdout have the classes of the given target, in
    its order. Public images may be of another size than the private ones. endpoint: of a target that is
    a service. made: what was made of the images; copies with another target share it.
    """

    private: ImageSet
    holdout: ImageSet | None
    public: ImageSet
    target: Target | None
    evaluator: Target | None
    split: str
    warnings: tuple[str, ...]
    endpoint: Endpoint | None = None
    made: dict[object, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def joined(self) -> ImageSet:
        """Private images by id, then holdout images by id (:func:`inversight.data.join_images`)."""
        return self._once("joined", lambda: join_images(self.private, self.holdout))

    def twins(self, progress: Progress = silent) -> Twins:
        """Return the near-duplicates among the ``joined`` images."""
        return self._once("twins", lambda: find_twins(self.joined, progress=progress))

    def public_as(self, *, size: int, channels: int) -> ImageSet:
        """Return the public images at a size and number of channels."""
        return self._once(
            (size, channels), lambda: self.public.resized(size=size, channels=channels)
        )

    def _once(self, name: object, make: Callable[[], T]) -> T:
        if name not in self.made:
            self.made[name] = make()
        found: T = self.made[name]
        return found


def read_inputs(
    settings: AuditSettings, reporter: Reporter, public_size: int | None = None,
    cache: Path | None = None,
) -> Inputs:  # fmt: skip
    """Read and check all images and models that were given.

    Public images are brought to ``public_size``; none: to the private images' size. ``cache``: folder of
    decoded images (:func:`inversight.data.load_images`).

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
        inputs = _read_folders(
            settings, settings.private, settings.public, reporter, public_size, cache
        )
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


def with_splits(settings: AuditSettings) -> tuple[AuditSettings, tuple[str, ...]]:
    """Return settings whose images are splits of ``data`` where they were not given, and warnings.

    Raises:
        ConfigError: a split that is not there, or no private or public images.
    """
    path = settings.data
    if path is None:
        return settings, ()
    where = f"--data {path}"
    found = read_splits(path, "--data")
    roles = _split_roles(settings.splits, found, where)
    paths = {role: split_path(path, names, "--data") for role, names in roles.items() if names}
    given = {name: getattr(settings, name) for name in _SPLIT_ROLES}
    chosen: dict[str, Any] = {name: given[name] or paths.get(name) for name in _SPLIT_ROLES}
    for name in ("private", "public"):
        if chosen[name] is None:
            raise ConfigError(
                f"{where}: has no split for --{name} images ({', '.join(_SPLIT_ROLES[name])}); it has "
                f"{', '.join(found) or 'no splits'}: say which with --splits {name}=SPLIT, or give "
                f"--{name}"
            )
    used = {s for role, names in roles.items() if given[role] is None for s in names}
    unused = [name for name in found if name not in used]
    warnings = [f"{where}: split(s) {', '.join(unused)} are not used"] if unused else []
    return replace(settings, data=None, splits=None, **chosen), tuple(warnings)


def _split_roles(rule: str | None, found: Sequence[str], where: str) -> dict[str, list[str]]:
    """Return the splits of each role, by the ``rule`` that --splits gives or by their usual names."""
    if rule is None:
        return {
            role: [name for name in found if name.lower() in names]
            for role, names in _SPLIT_ROLES.items()
        }
    roles: dict[str, list[str]] = {}
    for part in rule.split(","):
        role, _, names = part.partition("=")
        if role not in _SPLIT_ROLES or not names or role in roles:
            raise ConfigError(
                f"--splits {rule}: expected private=SPLIT, holdout=SPLIT and public=SPLIT with commas "
                "between them, SPLIT+SPLIT for more than one"
            )
        roles[role] = names.split("+")
    named = [name for names in roles.values() for name in names]
    for name in named:
        if name not in found:
            raise ConfigError(
                f"--splits {rule}: {where} has no split {name}; it has {', '.join(found) or 'none'}"
            )
        if named.count(name) > 1:
            raise ConfigError(f"--splits {rule}: {name} is named twice; each split has one role")
    return roles


def scaled(size: Size, side: int | None) -> Size:
    """Return a size of the same shape for images of ``side`` pixels; None: ``size`` itself."""
    if side is None or isinstance(size, int):
        return side or size
    height, width = size
    longer = max(size)
    return (max(1, round(side * height / longer)), max(1, round(side * width / longer)))


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
    found = load_target(
        model, classes=private.classes, size=private.size, channels=private.channels,
        warn=reporter.warn,
    )  # fmt: skip
    if found.access is not Access.WHITE_BOX:
        raise model.error(
            f"gives {found.access} access only; an evaluator's penultimate features are needed: give "
            "its weights, or leave it out"
        )
    return found


def _read_folders(
    settings: AuditSettings, private_path: Path, public_path: Path, reporter: Reporter,
    public_size: int | None, cache: Path | None,
) -> Inputs:  # fmt: skip
    log = Log(reporter)
    rule = None
    if settings.group_by is not None:
        tables = {"private": private_path, "holdout": settings.holdout}
        rule = column_rule(tables, settings.group_by) or read_group_rule(settings.group_by)
    read = partial(read_folder, reporter=log, cache=cache)
    private = read(private_path, "--private", size=settings.size, limit=settings.limit)
    if settings.target is None:
        check_size(private.size, given=settings.size is not None)
    size = settings.size or private.size
    public = read(public_path, "--public", size=scaled(size, public_size), labelled=False)
    sets = {"--private": private, "--public": public}
    if settings.holdout is not None:
        holdout = read(settings.holdout, "--holdout", size=size)
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
    warn_of_near_copies(sets, log)
    target = endpoint = None
    if settings.target is not None:
        model = ModelSpec(
            settings.target, classes=settings.classes, mean=settings.mean, std=settings.std,
            size=settings.size, trust=settings.trust_target, headers=settings.endpoint_header,
            access=None if settings.access is None else Access(settings.access),
            frozen_until=settings.frozen_until,
        )  # fmt: skip
        target, endpoint = open_target(
            model, classes=private.classes, size=private.size, channels=channels, reporter=log
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
    return Inputs(private, held, public, target, None, split, tuple(log.warnings), endpoint)


def read_folder(
    path: Path, role: str, reporter: Reporter, *, size: Size | None, channels: int | None = None,
    labelled: bool = True, limit: int | None = None, cache: Path | None = None,
) -> ImageSet:  # fmt: skip
    """Read a folder or file of images (:func:`inversight.data.load_images`), with progress and warnings."""
    return load_images(
        path, role=role, size=size, channels=channels, labelled=labelled, limit=limit,
        progress=reporter.stage(f"reading {role.removeprefix('--')}"), warn=reporter.warn, cache=cache,
    )  # fmt: skip


def warn_of_near_copies(sets: Mapping[str, ImageSet], log: Reporter) -> None:
    """Warn of images that two sets have almost in common; ``sets`` by role, such as "--private".

    Exact copies are refused elsewhere (:func:`inversight.data.check_overlap`).
    """
    known = [role for role in ("--private", "--holdout", "--public") if role in sets]
    for role, other in combinations(known, 2):
        first, second = sets[role], sets[other]
        found = find_near_copies(first, second, progress=log.stage("near-copies"))
        if found.pairs:
            shown = ", ".join(
                f"{first.ids[i]} and {second.ids[j]}" for i, j in found.pairs[:_NAMED]
            )
            more = f" and {len(found.pairs) - _NAMED} more" if len(found.pairs) > _NAMED else ""
            log.warn(
                f"{role} and {other} have {len(found.pairs)} near-copies, such as frames of a film or one "
                f"picture saved twice: {shown}{more}; {_BECAUSE[role, other]}; keep each on one side"
            )
        if found.compared != (len(first), len(second)):
            log.warn(
                f"near-copies were sought among {found.compared[0]:,} of {len(first):,} {role} and "
                f"{found.compared[1]:,} of {len(second):,} {other} images"
            )


def keep_classes(images: ImageSet, classes: Sequence[str]) -> ImageSet:
    """Return the images whose class is among ``classes``, relabelled to the classes that remain."""
    names = [images.classes[y] for y in images.labels.tolist()]
    remaining = tuple(name for name in images.classes if name in classes)
    keep = [i for i, name in enumerate(names) if name in classes]
    labels = torch.tensor([remaining.index(names[i]) for i in keep], dtype=torch.int64)
    kept = images.select(torch.tensor(keep, dtype=torch.int64))
    return replace(kept, labels=labels, classes=remaining)
