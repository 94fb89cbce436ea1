"""An attack on a service, class after class, each kept as soon as it is finished.

A service can go away while it is attacked. What is finished then stays, and the same command goes on.
"""

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
from inversight.attacks.endpoint import Endpoint
from inversight.attacks.files import LATENTS
from inversight.attacks.workload import share_queries
from inversight.core.config import to_mapping
from inversight.core.console import Reporter
from inversight.core.errors import InversightError, RunError
from inversight.core.run import atomic_folder, check_new_folder, write_json
from inversight.core.seeding import generator
from inversight.models.target import Target
from inversight.priors.base import Prior

BEGUN = "attack.json"
"""Says which attack began in this folder, so that the same may go on there."""
_FINISHED = "finished"
"""Latents of each finished class, until all are there."""


@dataclass(frozen=True)
class OneByOne:
    """An attack on ``endpoint`` that keeps what is finished in ``out``.

    Each class is attacked as all of them together would be: from the same seed, with the pool's
    answers remembered by the endpoint.
    """

    out: Path
    attack: Attack
    name: str
    seed: int
    spec: str
    prior: str

    @property
    def facts(self) -> dict[str, Any]:
        settings = to_mapping(self.attack)
        return {
            "attack": self.name,
            "settings": settings if isinstance(settings, dict) else type(settings).__name__,
            "seed": self.seed,
            "target": self.spec,
            "prior": self.prior,
        }

    def check(self) -> None:
        """See whether the attack may begin in ``out``, or go on there, writing nothing.

        Raises:
            RunError: the folder holds something else, or another attack.
        """
        file = self.out / BEGUN
        if not file.is_file() or (self.out / LATENTS).is_file():
            check_new_folder(self.out, needed_bytes=50_000_000)
            return
        before = json.loads(file.read_text())
        other = next((k for k, v in self.facts.items() if before.get(k) != v), None)
        if other is not None:
            raise RunError(
                f"--out {self.out}: an attack began there and its {other} differed; give the same "
                "again to go on, or name another folder"
            )

    def run(
        self,
        target: Target,
        endpoint: Endpoint,
        prior: Prior,
        labels: Tensor,
        reporter: Reporter,
    ) -> int:
        """Attack what is left of ``labels``; returns how many images were sent for all of them.

        A class that no sample of the prior falls into is left out with a warning.

        Raises:
            NoSampleError: that is so of all classes.
            InversightError: what the attack or the service raised; says which classes are kept.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / BEGUN, self.facts)
        done = self._done()
        left = [label for label in labels.tolist() if label not in done]
        if done:
            reporter.say(f"{len(done)} of {len(labels)} classes are there already")
        # LOKT is done with the service before it turns to any class, and teaches surrogates for all.
        groups = [left] if isinstance(self.attack, Lokt) else [[label] for label in left]
        for group in groups:
            if not group:
                continue
            shown = " ".join(target.classes[label] for label in group[:3])
            try:
                self._class(target, endpoint, prior, group, len(labels), reporter, shown)
            except InversightError as error:
                kept = len(self._done())
                raise type(error)(
                    f"{error}; {kept} of {len(labels)} classes are finished and kept in "
                    f"{self.out}/reconstructions, and the same command goes on"
                ) from error
        return self._collect()

    def _class(
        self, target: Target, endpoint: Endpoint, prior: Prior, group: list[int], classes: int,
        reporter: Reporter, shown: str,
    ) -> None:  # fmt: skip
        before = endpoint.sent
        made, without = None, ""
        try:
            made = run_attack(
                # The pool is remembered, and sent once.
                share_queries(self.attack, prior, len(group), of=classes),
                target,
                prior,
                torch.tensor(group),
                rng=generator(self.seed, f"attack/{self.name}"),
                progress=reporter.stage(f"{self.name} {shown}"),
            )
        except NoSampleError as error:  # it would come again, however often the command is run
            without = str(error)
        missing = missing_classes(made, torch.tensor(group), target.classes)
        if missing is not None:
            reporter.warn(f"{self.name}: {missing}")
        facts = {"labels": group, "sent": endpoint.sent - before, "without": without}
        pictures = self.out / "reconstructions"
        pictures.mkdir(exist_ok=True)
        with atomic_folder(self.out / _FINISHED / f"{group[0]:06d}") as folder:
            if made is not None:
                write_reconstructions(
                    folder, "pictures", made, classes=target.classes, name=self.name
                )
            write_json(folder / "facts.json", facts)
            for label in group:
                source, place = (f / target.classes[label] for f in (folder / "pictures", pictures))
                shutil.rmtree(place, ignore_errors=True)
                if source.is_dir():  # no sample may have been in the class
                    source.replace(place)
            shutil.rmtree(folder / "pictures", ignore_errors=True)

    def _done(self) -> set[int]:
        found: set[int] = set()
        for file in (self.out / _FINISHED).glob("[!.]*/facts.json"):
            found.update(json.loads(file.read_text())["labels"])
        return found

    def _collect(self) -> int:
        """Latents of all classes in one file; returns how many images were sent.

        Raises:
            NoSampleError: there are none.
        """
        finished = self.out / _FINISHED
        folders = sorted(file.parent for file in finished.glob("[!.]*/facts.json"))
        facts = [json.loads((f / "facts.json").read_text()) for f in folders]
        sent: int = sum(one["sent"] for one in facts)
        parts = [load_latents(f) for f in folders if (f / LATENTS).is_file()]
        if not parts:
            raise NoSampleError(facts[0]["without"])
        write_json(self.out / "facts.json", {"queries": sent})
        partial = self.out / f".{LATENTS}.partial"
        save_file({k: torch.cat([part[k] for part in parts]) for k in parts[0]}, partial)
        partial.replace(self.out / LATENTS)
        shutil.rmtree(finished)
        return sent
