"""Attacks on a service, class after class: finished classes are kept, and the same command goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
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
from inversight.core.errors import InversightError, TargetError
from inversight.core.run import atomic_file, atomic_folder, check_resumable, write_json
from inversight.models.spec import ModelSpec, read_classes
from inversight.models.target import Target
from inversight.pipeline.context import Context
from inversight.priors.base import Prior
from inversight.priors.prior_file import PriorFile

BEGUN = "attack.json"
"""Says which attack began in this folder, so that the same may go on there."""
_FINISHED = "finished"
"""Latents of each finished class, until all classes are done."""


def connect(prior: PriorFile, model: ModelSpec, reporter: Reporter) -> tuple[Target, Endpoint]:
    """Return the service that the spec names, for images of --size, or else of the prior's size.

    Raises:
        TargetError: its class names are missing, or it gives no usable answer.
    """
    if model.classes is None:
        raise TargetError(
            f"--target {model.spec}: give the names of its classes in the order of its "
            "probabilities with --classes FILE"
        )
    if model.mean is not None or model.std is not None:
        raise TargetError(
            f"--target {model.spec}: a service normalises images itself; leave --mean and --std out"
        )
    channels, size, _ = prior.prior.image_shape
    side = model.size or size
    return endpoint_target(
        model.spec, classes=read_classes(model.classes), image_shape=(channels, side, side),
        headers=read_headers(model.headers), warn=reporter.warn,
    )  # fmt: skip


@dataclass(frozen=True)
class ServiceAttack:
    """An attack on a service that keeps finished classes in ``out``.

    A class is attacked as it would be together with all others: from the same seed, and the endpoint
    remembers its answers for the pool.

    name: the attack's. target: the service's spec. prior: the prior's fingerprint.
    """

    out: Path
    attack: Attack
    name: str
    target: str
    prior: str
    context: Context

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

    def run(self, target: Target, endpoint: Endpoint, prior: Prior, labels: Tensor) -> int:
        """Attack the unfinished classes of ``labels``; return the images sent for all of them.

        A class that no sample of the prior falls into is left out with a warning.

        Raises:
            NoSampleError: no sample falls into any class.
            InversightError: the attack or the service failed; says which classes are kept.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / BEGUN, self.facts)
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
                    f"{self.out / PICTURES}, and the same command goes on"
                ) from error
        return self._collect()

    def _attack_group(
        self, target: Target, endpoint: Endpoint, prior: Prior, group: list[int], classes: int
    ) -> None:
        """Attack the classes of ``group``, which are finished together."""
        before, labels, reporter = endpoint.sent, torch.tensor(group), self.context.reporter
        shown = " ".join(target.classes[label] for label in group[:3])
        found, reason = None, ""
        try:
            found = run_attack(
                share_queries(self.attack, prior, len(group), of=classes), target, prior, labels,
                rng=self.context.rng(f"attack/{self.name}"),
                progress=reporter.stage(f"{self.name} {shown}"),
            )  # fmt: skip
        except NoSampleError as error:  # it would come again whenever the command is run
            reason = str(error)
        missing = missing_classes(found, labels, target.classes)
        if missing is not None:
            reporter.warn(f"{self.name}: {missing}")
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

    def _collect(self) -> int:
        """Write the latents of all classes to one file; return how many images were sent.

        Raises:
            NoSampleError: no class has a reconstruction.
        """
        finished = self._finished()
        parts = [load_latents(folder) for folder in finished if (folder / LATENTS).is_file()]
        if not parts:
            raise NoSampleError(next(iter(finished.values()))["reason"])
        sent: int = sum(facts["sent"] for facts in finished.values())
        write_json(self.out / "facts.json", {"queries": sent})
        with atomic_file(self.out / LATENTS) as file:
            save_file({k: torch.cat([part[k] for part in parts]) for k in parts[0]}, file)
        shutil.rmtree(self.out / _FINISHED)
        return sent
