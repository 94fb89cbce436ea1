"""Attacks on a service, class after class: finished classes are kept, and the same command goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from inversight.attacks import Attack, Lokt, load_latents, run_attack, write_reconstructions
from inversight.attacks.base import NoSampleError, missing_classes
from inversight.attacks.endpoint import Endpoint, endpoint_target, read_headers
from inversight.attacks.files import LATENTS, PICTURES, move_pictures
from inversight.attacks.workload import share_queries
from inversight.core.config import to_mapping
from inversight.core.console import Reporter
from inversight.core.errors import ConfigError, InversightError
from inversight.core.run import atomic_file, atomic_folder, check_resumable, write_json
from inversight.models.loading import check_private_classes, load_target
from inversight.models.spec import ModelSpec, read_classes
from inversight.models.target import Target
from inversight.pipeline.context import Context
from inversight.priors import Prior, StylePrior
from inversight.priors.image_cache import ImageCache

BEGUN = "attack.json"
"""Says which attack began in this folder, so that the same may go on there."""
_FINISHED = "finished"
"""Latents of each finished class, until all classes are done."""


def open_target(
    model: ModelSpec, *, classes: tuple[str, ...], size: int, channels: int, reporter: Reporter
) -> tuple[Target, Endpoint | None]:
    """Return the model or service that ``model`` names, and the service's endpoint.

    Arguments as of :func:`inversight.models.loading.load_target`.

    Raises:
        TargetError: wrong in any way.
    """
    if not model.is_service:
        check_headers(model)
        target = load_target(
            model, classes=classes, size=size, channels=channels, warn=reporter.warn
        )
        return target, None
    return connect(model, classes=classes, size=size, channels=channels, reporter=reporter)


def check_headers(model: ModelSpec) -> None:
    """Refuse headers for a model that is no service.

    Raises:
        ConfigError: there are some.
    """
    if model.headers:
        raise ConfigError(
            f"--endpoint-header: is for a service, and --target {model.spec} is none; leave it out"
        )


def connect(
    model: ModelSpec, *, classes: tuple[str, ...], size: int, channels: int, reporter: Reporter
) -> tuple[Target, Endpoint]:
    """Return the service that ``model`` names, for images of --size, or else of ``size``.

    ``classes``: names in the order of its probabilities, unless --classes gives them.

    Raises:
        TargetError: its class names are missing, or it gives no usable answer.
    """
    names = read_classes(model.classes) if model.classes else classes
    if not names:
        raise model.error(
            "give the names of its classes in the order of its probabilities with --classes FILE"
        )
    if model.mean is not None or model.std is not None:
        raise model.error("a service normalises images itself; leave --mean and --std out")
    target, endpoint = endpoint_target(
        model.spec, classes=names, image_shape=(channels, *model.shape(size)),
        headers=read_headers(model.headers), warn=reporter.warn,
    )  # fmt: skip
    check_private_classes(target, classes, model)
    return target.restricted(model.access_of(target.access)), endpoint


@dataclass(frozen=True)
class ServiceAttack:
    """An attack on a service that keeps finished classes in ``out``.

    A class is attacked as it would be together with all others: from the same seed, and the endpoint
    remembers its answers for the pool.

    name: the attack's. target: the service's spec. prior: the prior's fingerprint. again: how it goes
    on after an error, in words.
    """

    out: Path
    attack: Attack
    name: str
    target: str
    prior: str
    context: Context
    again: str = "the same command goes on"

    @property
    def facts(self) -> dict[str, Any]:
        """What must be the same for the attack to go on."""
        settings = to_mapping(self.attack)
        return {
            "--attack": self.name,
            "settings": settings if isinstance(settings, dict) else type(settings).__name__,
            "--seed": self.context.seed,
            "--target": self.target,
            "--prior": self.prior,
        }

    def check(self) -> None:
        """Check that the attack may begin in ``out`` or go on there, writing nothing.

        Raises:
            RunError: the folder holds something else, or another attack.
        """
        check_resumable(self.out, self.facts, marker=BEGUN, product=LATENTS, what="an attack")

    def run(self, target: Target, endpoint: Endpoint, prior: Prior, labels: Tensor) -> None:
        """Attack the unfinished classes of ``labels``, and write what all of them took to facts.json.

        A class that no sample of the prior falls into is left out, and named there.

        Raises:
            NoSampleError: no sample falls into any class.
            InversightError: the attack or the service failed; says which classes are kept.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / BEGUN, self.facts)
        if isinstance(prior, StylePrior):
            prior = replace(prior, cache=ImageCache())  # one pool for all classes
        done = self._finished_labels()
        left = [label for label in labels.tolist() if label not in done]
        if done:
            self.context.reporter.say(f"{len(done)} of {len(labels)} classes are there already")
        # LOKT asks the service before it turns to any class, and trains its surrogates for all.
        groups = [left] if isinstance(self.attack, Lokt) else [[label] for label in left]
        for group in filter(None, groups):
            try:
                self._attack_group(target, endpoint, prior, group, len(labels))
            except InversightError as error:
                kept = len(self._finished_labels())
                raise type(error)(
                    f"{error}; {kept} of {len(labels)} classes are finished and kept in "
                    f"{self.out / PICTURES}, and {self.again}"
                ) from error
        self._collect(target, labels)

    def _attack_group(
        self, target: Target, endpoint: Endpoint, prior: Prior, group: list[int], classes: int
    ) -> None:
        """Attack the classes of ``group``, which are finished together."""
        before, labels, reporter = endpoint.sent, torch.tensor(group), self.context.reporter
        shown = " ".join(self.context.hide(target.classes[label]) for label in group[:3])
        found, reason = None, ""
        try:
            found = run_attack(
                share_queries(self.attack, prior, len(group), of=classes), target, prior, labels,
                rng=self.context.rng(f"attack/{self.name}"),
                progress=reporter.stage(f"{self.name} {shown}"),
            )  # fmt: skip
        except NoSampleError as error:  # it would come again whenever the command is run
            reason = str(error)
        with atomic_folder(self.out / _FINISHED / f"{group[0]:06d}") as folder:
            if found is not None:
                write_reconstructions(folder, found, classes=target.classes, name=self.name)
            facts = {"labels": group, "sent": endpoint.sent - before, "reason": reason}
            write_json(folder / "facts.json", facts)
            for label in group:  # what a stopped attempt left
                shutil.rmtree(self.out / PICTURES / target.classes[label], ignore_errors=True)
            move_pictures(folder, self.out)

    def _finished(self) -> dict[Path, dict[str, Any]]:
        """Return the facts of each finished group of classes by its folder, in order."""
        files = sorted((self.out / _FINISHED).glob("[!.]*/facts.json"))
        return {file.parent: json.loads(file.read_text()) for file in files}

    def _finished_labels(self) -> set[int]:
        return {label for facts in self._finished().values() for label in facts["labels"]}

    def _collect(self, target: Target, labels: Tensor) -> None:
        """Write the latents and facts of all ``labels``.

        Raises:
            NoSampleError: no class has a reconstruction.
        """
        finished = self._finished()
        parts = [load_latents(folder) for folder in finished if (folder / LATENTS).is_file()]
        if not parts:
            raise NoSampleError(next(iter(finished.values()))["reason"])
        sent: int = sum(facts["sent"] for facts in finished.values())
        there = torch.cat([part["labels"] for part in parts])
        names = [self.context.hide(name) for name in target.classes]
        left_out = missing_classes(there, labels, names)
        write_json(self.out / "facts.json", {"queries": sent, "left_out": left_out})
        with atomic_file(self.out / LATENTS) as file:
            save_file({k: torch.cat([part[k] for part in parts]) for k in parts[0]}, file)
        shutil.rmtree(self.out / _FINISHED)
