"""Attacks on a target, and the control, whose samples no target guides."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inversight.attacks import (
    Attack,
    Reconstructions,
    check_fits,
    gather,
    run_assigned,
    run_attack,
    write_reconstructions,
)
from inversight.attacks import control as draw_control
from inversight.attacks.base import missing_classes
from inversight.attacks.control import NAME as CONTROL
from inversight.attacks.control import control_truncation
from inversight.attacks.endpoint import read_spec
from inversight.attacks.files import PICTURES
from inversight.core.config import build
from inversight.core.console import Reporter
from inversight.core.device import memory_remedy
from inversight.core.errors import ConfigError, StageError
from inversight.core.run import atomic_folder, check_new_folder, write_json
from inversight.data import ImageSet, image_set
from inversight.data.decoding import decode, to_tensor
from inversight.models.loading import load_target
from inversight.models.spec import ModelSpec
from inversight.models.target import Target
from inversight.pipeline.choice import choose_attack
from inversight.pipeline.context import Context
from inversight.pipeline.service import ServiceAttack, check_headers, connect
from inversight.priors import Prior
from inversight.priors.prior_file import PriorFile, check_channels, read_prior
from inversight.settings import (
    ATTACKS,
    STRONGEST,
    attack_budgets,
    check_attack,
    is_strongest,
    with_budget,
)


@dataclass(frozen=True)
class AttackFacts:
    """What is known of an attack beside its reconstructions.

    queries: images sent to the target. left_out: a warning that names the classes without a
    reconstruction, None if there are none.
    """

    queries: int
    left_out: str | None

    @classmethod
    def read(cls, folder: Path) -> AttackFacts:
        """Read what :func:`write_attack` left in ``folder``."""
        return cls(**json.loads((folder / "facts.json").read_text()))


def attack_stage(
    folder: Path, attack: Attack, target: Target, prior: Prior, labels: Tensor, *, name: str,
    context: Context, limit: int | None = None, title: str | None = None,
) -> AttackFacts:  # fmt: skip
    """Attack the classes ``labels`` of ``target`` and write the reconstructions to ``folder``.

    Args:
        name: the attack's; its random numbers derive from it and the seed.
        limit: images that may be sent to the target, None for any number.
        title: name of the progress bar, if not the attack's.

    Raises:
        StageError: the attack failed, as when the limit is too low for it.
    """
    found = run_attack(
        attack, target, prior, labels, rng=context.rng(f"attack/{name}"), limit=limit,
        progress=context.reporter.stage(title or name),
    )  # fmt: skip
    return write_attack(folder, found, labels, target.classes, name, context.hide)


def write_attack(
    folder: Path, found: Reconstructions, labels: Tensor, classes: Sequence[str], name: str,
    hide: Callable[[str], str],
) -> AttackFacts:  # fmt: skip
    """Write the images, latents and facts of an attack on ``labels`` to ``folder``."""
    write_reconstructions(folder, found, classes=classes, name=name)
    left_out = missing_classes(found.labels, labels, [hide(c) for c in classes])
    facts = AttackFacts(found.queries or 0, left_out)
    write_json(folder / "facts.json", vars(facts))
    return facts


def pictures_of(pictures: Path, name: str) -> list[Path]:
    """Return the files of the attack called ``name`` below ``pictures``, in order of their names."""
    pattern = re.compile(rf"{re.escape(name)}-\d{{4,}}\.png")
    found = (f for f in pictures.glob("*/*.png") if pattern.fullmatch(f.name))
    return sorted(found, key=Path.as_posix)


def read_pictures(pictures: Path, name: str, *, classes: Sequence[str], channels: int) -> ImageSet:
    """Return the reconstructions of the attack called ``name`` in order of their ids, CLASS/FILE.

    Raises:
        StageError: there are none.
    """
    files = pictures_of(pictures, name)
    if not files:
        raise StageError(f"{pictures}: the reconstructions of {name} are gone; start a new run")
    images = torch.stack(
        [to_tensor(decode(file, f"{name} {file}"), None, channels) for file in files]
    )
    ids = [file.relative_to(pictures).as_posix() for file in files]
    return image_set(images, [file.parent.name for file in files], ids, classes)


def control_stage(
    folder: Path, prior: Prior, labels: Tensor, *, attacks: Iterable[Attack], classes: Sequence[str],
    context: Context,
) -> None:  # fmt: skip
    """Write a sample of ``prior`` for each of ``labels`` (M,), as varied as the most varied attack."""
    samples = draw_control(
        prior, labels, rng=context.rng(CONTROL), truncation=control_truncation(attacks),
        progress=context.reporter.stage(CONTROL),
    )  # fmt: skip
    write_reconstructions(folder, samples, classes=classes, name=CONTROL)


def build_attack(spec: str | dict[str, Any]) -> tuple[str, Attack]:
    """Return the attack that ``spec`` names, and the name by which its results are kept.

    Raises:
        ConfigError: there is no such attack, or its settings are wrong.
    """
    if is_strongest(spec):
        raise ConfigError(
            f"--attack {STRONGEST}: is chosen by `inversight audit` and `inversight attack` alone; give the "
            "name of an attack"
        )
    check_attack(spec)
    attack = build(spec, ATTACKS, role="--attack")
    name = (spec if isinstance(spec, str) else str(spec["class"])).rpartition(":")[2]
    if not isinstance(attack, Attack):
        raise ConfigError(
            f"--attack {name}: expected `access` and `run(target, prior, labels, *, rng, progress)`"
        )
    return name, attack


def load_target_for(prior: PriorFile, model: ModelSpec, reporter: Reporter) -> Target:
    """Load the target; a model that takes any size is given the size of the prior's images.

    Raises:
        TargetError: wrong in any way, or its class names are not known.
        DataError: only one of prior and model is of colour images.
    """
    channels, size, _ = prior.prior.image_shape
    target = load_target(model, classes=(), size=size, channels=channels, warn=reporter.warn)
    check_channels(
        prior.prior,
        prior.file,
        target.image_shape[0],
        f"those that {model.spec} takes",
        "give a prior trained on images like the target's, or name the target as "
        "package.module:factory, a function that returns it behind a layer that converts",
    )
    return target


def attack(
    prior: Path, out: Path, *, model: ModelSpec, attack: str, limit: int | None, preset: str,
    given: dict[str, Any], context: Context,
) -> Path:  # fmt: skip
    """Attack a target with a prior; return the folder of the reconstructions, by class.

    ``given`` are settings of the attack, on top of the preset's; ``limit`` is the number of classes,
    from the first. A service is attacked class after class: see :mod:`inversight.pipeline.service`.

    Raises:
        InputError: wrong input; nothing has been written.
    """
    processes, reporter = context.processes, context.reporter
    if processes.count > 1 and model.is_service:
        raise ConfigError(
            f"--target {model.spec}: a service is attacked by one process, which keeps to its rate and "
            "goes on where it was stopped; run the command without accelerate launch"
        )
    spec: dict[str, Any] = {"class": attack, **given}
    # An error of one process alone, such as a file that its machine lacks, ends all of them.
    with processes.together():
        check_attack(spec)
        given_prior = read_prior(prior)
        load = cache(partial(load_target_for, given_prior, model, reporter))
        if is_strongest(spec):
            given_target = None if model.is_service else load()
            access = read_spec(model.spec).access if given_target is None else given_target.access
            spec, reason = choose_attack(spec, access, given_prior.prior, given_target)
            reporter.say(reason)
        name, built = build_attack(with_budget(spec, attack_budgets(preset)))
        service = None
        if model.is_service:
            service = ServiceAttack(out, built, name, model.spec, given_prior.fingerprint, context)
            service.check()
            channels, size, _ = given_prior.prior.image_shape
            target, endpoint = connect(
                model, classes=(), size=size, channels=channels, reporter=reporter
            )
        else:
            check_headers(model)
            target = load().to(context.device)
        attacked = given_prior.prior.to(context.device)
        check_fits(built, target, attacked)
        labels = torch.arange(min(limit or target.num_classes, target.num_classes))
        batch = getattr(built, "batch_size", None)
        less = "" if batch is None else f", as in --set batch_size={max(1, batch // 2)}"
        with memory_remedy("attack", f"lower batch_size{less}, and run the command again"):
            if service is not None:
                service.run(target, endpoint, attacked, labels)
                _tell(reporter, name, built, AttackFacts.read(out))
                return out / PICTURES
            check_new_folder(out, needed_bytes=50_000_000)
            part = run_assigned(
                built, target, attacked, labels, processes=processes,
                rng=context.rng(f"attack/{name}"), progress=reporter.stage(name),
            )  # fmt: skip
    found = gather(part, processes)
    if found is not None:
        with atomic_folder(out) as folder:
            facts = write_attack(folder, found, labels, target.classes, name, context.hide)
        _tell(reporter, name, built, facts)
    return out / PICTURES


def _tell(reporter: Reporter, name: str, attack: Attack, facts: AttackFacts) -> None:
    if facts.left_out is not None:
        reporter.warn(f"{name}: {facts.left_out}")
    reporter.say(f"{name}: {facts.queries:,} images sent to the target, {attack.access} access")
