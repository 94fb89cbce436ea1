"""A checked audit: its parts, forecast, announcement and manifest."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from inversight.adaptation import check_arm, check_public
from inversight.attacks import Attack, check_fits
from inversight.core.config import build, to_mapping
from inversight.core.console import Reporter
from inversight.core.device import memory_remedy, pick_device
from inversight.core.errors import ConfigError, InputError, RunError
from inversight.core.run import provenance
from inversight.core.seeding import generator
from inversight.data import ImageSet, working_size
from inversight.embeddings import named_embedding
from inversight.models.target import Target
from inversight.pipeline.attack import build_attack
from inversight.pipeline.estimate import Estimate, estimate
from inversight.pipeline.evaluation import check_pairs
from inversight.pipeline.inputs import Inputs, read_inputs
from inversight.pipeline.result import thresholds
from inversight.pipeline.score_inputs import anchored
from inversight.pipeline.timing import untrained_target
from inversight.priors import Prior, untrained_prior
from inversight.priors.classes import condition_on_classes
from inversight.priors.prior_file import (
    COLOURS,
    PriorFile,
    check_adaptable,
    check_channels,
    read_prior,
)
from inversight.settings import ARMS, AuditSettings, prior_path, prior_training

_LOWER = {
    "target": "target_training.batch_size",
    "evaluator": "evaluator_training.batch_size",
    "public-network": "public_training.batch_size",
    "prior": "prior.images_at_once",
    "adaptation": "adaptation.images_at_once",
    "scores": "--memory",
    "signals": "--memory",
}
"""The setting to lower if a stage runs out of memory."""


@dataclass(frozen=True)
class Plan:
    """A checked audit, ready to run.

    work: size at which networks are trained here, in pixels.
    """

    settings: AuditSettings
    inputs: Inputs
    attacks: dict[str, Attack]
    own_prior: Prior | None
    given_prior: PriorFile | None
    work: int
    device: torch.device

    @classmethod
    def prepare(cls, settings: AuditSettings, reporter: Reporter) -> Plan:
        """Read all inputs and check everything that can be wrong.

        Raises:
            InputError: the first thing wrong; nothing has been written.
        """
        device = pick_device(settings.device)
        attacks: dict[str, Attack] = {}
        for spec in settings.attack:
            name, attack = build_attack(spec)
            if name in attacks:
                raise ConfigError(f"--attack {name}: is given twice")
            attacks[name] = attack
        own, given = None, None
        path = prior_path(settings)
        if path is not None:
            given = read_prior(path)
        elif prior_training(settings) is None:
            own = build(settings.prior, {}, role="prior")
            if not isinstance(own, Prior):
                raise ConfigError(
                    "prior: expected `image_shape`, `sample(n, *, rng)` and a call from latents to "
                    f"images; found {type(own).__name__}"
                )
        roles = (
            (settings.embedding, "--embedding"),
            (settings.features, "--features"),
            (settings.guidance_embedding, "--guidance-embedding"),
        )
        with_holdout = settings.private is None or settings.holdout is not None
        for limit in thresholds(settings.fail_on):
            limit.check(holdout=with_holdout, embedding=settings.embedding)
        check_pairs(settings.pairs)
        for name, role in roles:
            unused = role == "--guidance-embedding" and not ARMS[settings.arm].natural_gradient
            if name not in ("public", "evaluator") and not unused:
                # Find missing weights and broken classes before anything that takes long.
                named_embedding(name, use="distance", role=role, size=8)
        size = None if given is None else given.prior.image_shape[1]
        inputs = read_inputs(settings, reporter, size)
        work = working_size(inputs.private.size, settings.working_size)
        if own is not None and own.image_shape[0] not in (1, 3):
            raise ConfigError(f"prior: expected 1 or 3 channels, found {own.image_shape[0]}")
        if given is not None and path is not None:
            word = COLOURS[given.prior.image_shape[0]]
            check_channels(
                given.prior, path, inputs.private.channels, "the private and public images",
                f"save the images in {word}, or give a prior that was trained on images like them",
            )  # fmt: skip
            if not settings.adaptation.keeps_prior:
                check_adaptable(given.prior, path)
        plan = cls(settings, inputs, attacks, own, given, work, device)
        plan.check_parts()
        return plan

    def check_parts(self) -> None:
        """Check now what would otherwise fail after hours of training target and prior.

        Raises:
            ConfigError: the arm or an attack needs what the one or the other will lack, or an attack's
                settings contradict each other.
        """
        target, prior = self.likely_target, self.likely_prior
        if self.own_prior is None and not self.settings.adaptation.keeps_prior:
            check_arm(self.settings.arm, target)
            check_public(self.settings.arm, self.settings.adaptation, len(self.inputs.public))
        for name, attack in self.attacks.items():
            try:
                check_fits(attack, target, prior)
            except InputError as error:
                reason = re.sub(rf"^{re.escape(type(attack).__name__)}:? ", "", str(error))
                raise ConfigError(f"--attack {name}: {reason}") from error

    @property
    def likely_target(self) -> Target:
        """Return the target, or an untrained network of the kind that will be trained."""
        if self.inputs.target is not None:
            return self.inputs.target
        architecture = self.settings.target_training.architecture
        return untrained_target(self.inputs.private, self.shape, architecture)

    @property
    def likely_prior(self) -> Prior:
        """Return the prior that attacks will use, or an untrained one with the same abilities.

        An adaptation leaves a prior what it was, except that some arms condition it on classes.
        """
        if self.own_prior is not None:
            return self.own_prior
        if not self.settings.adaptation.keeps_prior and ARMS[self.settings.arm].conditional:
            untrained = untrained_prior(self.prior_shape)
            return condition_on_classes(untrained, len(self.inputs.classes), rng=generator(0))
        if self.given_prior is not None:
            return self.given_prior.prior
        return untrained_prior(self.shape)

    @property
    def needs_public_network(self) -> bool:
        names = [self.settings.embedding, self.settings.features]
        if ARMS[self.settings.arm].natural_gradient and self.own_prior is None:
            names.append(self.settings.guidance_embedding)
        return "public" in names

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape (C, S, S) of the images of networks that are trained here."""
        return (self.inputs.private.channels, self.work, self.work)

    @property
    def prior_shape(self) -> tuple[int, int, int]:
        """Return the shape (C, S, S) of the style-based prior's images."""
        return self.shape if self.given_prior is None else self.given_prior.prior.image_shape

    @cached_property
    def public_at_work(self) -> ImageSet:
        return self.inputs.public.resized(size=self.work, channels=self.shape[0])

    @cached_property
    def public_for_prior(self) -> ImageSet:
        """Return the public images at the prior's size."""
        channels, size, _ = self.prior_shape
        if self.prior_shape == self.shape:
            return self.public_at_work
        return self.inputs.public.resized(size=size, channels=channels)

    def remedy(self, stage: str, kept: str) -> AbstractContextManager[None]:
        """Say what to lower if ``stage`` runs out of memory, and what is ``kept``."""
        lower = _LOWER.get(stage)
        if stage in self.attacks:
            lower = f"batch_size, as in --set 'attack=[{{class: {stage}, batch_size: 20}}]'"
        return memory_remedy(
            stage, f"lower {lower or '--memory'}, or use a smaller --preset; {kept}"
        )

    def forecast(self) -> Estimate:
        """Estimate time and memory by short trials of the same code on this machine."""
        return estimate(self)

    def announcement(self, folder: Path, forecast: Estimate) -> str:
        """Return a description of the audit, to be shown before it begins."""
        s, i = self.settings, self.inputs
        target = s.target or "a small classifier, trained on the private images"
        prior = "own" if self.own_prior is not None else "style-based, trained on the public images"
        if self.given_prior is not None:
            prior = f"{s.prior}"
        side = (self.own_prior.image_shape if self.own_prior is not None else self.prior_shape)[1]
        lines = [
            f"inversight audit, preset {s.preset}, seed {s.seed}, device {self.device}",
            f"  data       {i.split}",
            f"  target     {target}",
            f"  prior      {prior}, {side}x{side}, arm {s.arm}",
            f"  attack     {', '.join(self.attacks)}",
            f"  distance   {s.embedding}; features {s.features}; guidance {s.guidance_embedding}",
            f"  results    {folder}",
            f"  estimate   {forecast}",
        ]
        return "\n".join(lines)

    def manifest(self) -> dict[str, Any]:
        s, i = self.settings, self.inputs
        sets = {"private": i.private, "holdout": i.holdout, "public": i.public}
        names = ("torch", "torchvision", "timm", "numpy", "scikit-learn")
        return {
            **provenance(),
            "seed": s.seed,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "preset": s.preset,
            "given": anchored(s),
            "settings": to_mapping(s),
            "inputs": {
                name: {
                    "path": str(getattr(s, name) or "embedded digits"),
                    "images": len(data),
                    "classes": len(data.classes),
                    "size": data.size,
                    "fingerprint": data.fingerprint(),
                }
                for name, data in sets.items()
                if data is not None
            }
            | self._prior_input(),
            "split": i.split,
            "notes": [],
            "warnings": list(i.warnings),
            "images": s.images,
            "embedding": s.embedding,
            "features": s.features,
            "guidance_embedding": s.guidance_embedding,
            "arm": s.arm if self.own_prior is None else "none (own prior)",
            "attacks": list(self.attacks),
            "access": {name: str(one.access) for name, one in self.attacks.items()},
            "versions": {
                "python": platform.python_version(),
                **{n: importlib.metadata.version(n) for n in names},
            },
        }

    def _prior_input(self) -> dict[str, dict[str, Any]]:
        if self.given_prior is None:
            return {}
        return {
            "prior": {
                "path": str(self.settings.prior),
                "size": self.prior_shape[1],
                "fingerprint": self.given_prior.fingerprint,
            }
        }


def check_unchanged(now: Mapping[str, Any], before: Mapping[str, Any], path: Path) -> None:
    """Check that images and prior in the manifest ``now`` are those of the manifest of ``path``.

    Raises:
        RunError: naming the first that has changed.
    """
    for name, facts in now["inputs"].items():
        if facts["fingerprint"] != before["inputs"].get(name, {}).get("fingerprint"):
            what = "prior has" if name == "prior" else f"{name} images have"
            raise RunError(
                f"{path}: the {what} changed since the run began ({facts['path']}); start a new run"
            )
