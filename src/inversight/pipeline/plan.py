"""A checked audit: its parts, announcement and manifest."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from inversight.adaptation import check_arm, check_public
from inversight.attacks import Attack, check_fits
from inversight.attacks.base import Advising
from inversight.attacks.weight_reconstruction import WeightReconstruction
from inversight.attacks.workload import Measurable
from inversight.core.cluster import Cluster, joined
from inversight.core.config import build, to_mapping
from inversight.core.console import Reporter
from inversight.core.device import memory_remedy, pick_device
from inversight.core.errors import ConfigError, InputError, RunError
from inversight.core.run import provenance
from inversight.core.seeding import generator
from inversight.core.threads import usable_threads
from inversight.data import ImageSet, groups_fingerprint, working_size
from inversight.embeddings import named_embedding
from inversight.models.recipes import Recipe, load_recipe
from inversight.models.target import Access, Target
from inversight.pipeline.attack import build_attack
from inversight.pipeline.choice import choose_attack
from inversight.pipeline.evaluation import check_pairs
from inversight.pipeline.inputs import Inputs, read_inputs, with_splits
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
from inversight.settings import (
    ARMS,
    SHADOWS,
    STRONGEST,
    AuditSettings,
    PriorTraining,
    attack_budgets,
    is_strongest,
    prior_path,
    prior_training,
    replace_strongest,
    with_budget,
)

_LOWER = {
    "target": "target_training.batch_size",
    "evaluator": "evaluator_training.batch_size",
    "public-network": "public_training.batch_size",
    "prior": "prior.images_at_once",
    "adaptation": "adaptation.images_at_once",
}
"""The setting to lower if a stage runs out of memory, --memory for others."""


_MOST_WORKERS = 4
"""Processes for shadow models, unless --workers says how many."""


@dataclass(frozen=True)
class Plan:
    """A checked audit, ready to run.

    prior: a prior that was made before, one of the user's own, or how one is trained. work: size at which
    networks are trained here, in pixels. cluster: where shadow models run, None: on this machine. chosen: which
    attack ``strongest`` stands for and why, None where it was not asked for.
    """

    settings: AuditSettings
    inputs: Inputs
    attacks: dict[str, Attack]
    prior: PriorFile | PriorTraining | Prior
    work: int
    device: torch.device
    cluster: Cluster | None = None
    chosen: str | None = None

    @classmethod
    def prepare(
        cls, settings: AuditSettings, reporter: Reporter, cache: Path | None = None
    ) -> Plan:
        """Read all inputs and check everything that can be wrong.

        ``cache``: folder where many images are kept decoded, so that a run that goes on decodes none again.

        Raises:
            InputError: the first thing wrong; nothing has been written.
        """
        settings, warnings = with_splits(settings)
        device = pick_device(settings.device)
        attacks = _build_attacks(spec for spec in settings.attack if not is_strongest(spec))
        if sum(map(is_strongest, settings.attack)) > 1:
            raise ConfigError(f"--attack {STRONGEST}: is given twice")
        prior = _read_prior(settings)
        check_thresholds(settings)
        check_pairs(settings.pairs)
        roles = {"--embedding": settings.embedding, "--features": settings.features}
        if settings.exposure_embedding is not None and settings.shadows != 0:
            roles["--exposure-embedding"] = settings.exposure_embedding
        if ARMS[settings.arm].natural_gradient:
            roles["--guidance-embedding"] = settings.guidance_embedding
        for role, name in roles.items():
            from_audit = role in ("--embedding", "--features")
            if name not in ("public", "evaluator") and not (name == "backbone" and from_audit):
                # Find missing weights and broken classes before anything that takes long.
                named_embedding(name, use="distance", role=role, size=8)
        size = prior.prior.image_shape[1] if isinstance(prior, PriorFile) else None
        for text in warnings:
            reporter.warn(text)
        inputs = read_inputs(settings, reporter, size, cache)
        inputs = replace(inputs, warnings=(*warnings, *inputs.warnings))
        if isinstance(prior, PriorFile):
            word = COLOURS[prior.prior.image_shape[0]]
            check_channels(
                prior.prior, prior.file, inputs.private.channels, "the private and public images",
                f"save the images in {word}, or give a prior that was trained on images like them",
            )  # fmt: skip
            if not settings.adaptation.keeps_prior:
                check_adaptable(prior.prior, prior.file)
        work = working_size(inputs.private.size, settings.working_size)
        plan = cls(settings, inputs, attacks, prior, work, device).with_chosen_attack(reporter)
        plan.check_parts()
        return plan.with_advice(reporter).with_tried_recipe()

    def with_chosen_attack(self, reporter: Reporter) -> Plan:
        """Return the plan with the attack that ``strongest`` stands for, if it is asked for, and say which.

        Raises:
            ConfigError: the attack is given as well, or does not have the settings that were given.
        """
        settings = self.settings
        spec = next(filter(is_strongest, settings.attack), None)
        if spec is None:
            return self
        chosen, reason = choose_attack(
            {"class": spec} if isinstance(spec, str) else spec, self.access, self.likely_prior,
            self.likely_target, len(self.inputs.private),
        )  # fmt: skip
        reporter.say(reason)
        budgets = attack_budgets(settings.preset, digits=settings.private is None)
        attacks = replace_strongest(settings.attack, with_budget(chosen, budgets))
        settings = replace(settings, attack=attacks)
        return replace(self, settings=settings, attacks=_build_attacks(attacks), chosen=reason)

    def check_parts(self) -> None:
        """Check now what would otherwise fail after hours of training target and prior.

        Raises:
            ConfigError: the arm or an attack needs what the one or the other will lack, or an attack's
                settings contradict each other.
        """
        target, prior = self.likely_target, self.likely_prior
        for role, name in (
            ("--embedding", self.settings.embedding),
            ("--features", self.settings.features),
        ):
            if name == "backbone":
                named_embedding(name, use="distance", role=role, size=8, target=self.inputs.target)
        if self.adapts:
            check_arm(self.settings.arm, self.settings.adaptation, target)
            check_public(self.settings.arm, self.settings.adaptation, len(self.inputs.public))
        for name, attack in self.attacks.items():
            try:
                check_fits(attack, target, prior)
            except InputError as error:
                reason = re.sub(rf"^{re.escape(type(attack).__name__)}:? ", "", str(error))
                raise ConfigError(f"--attack {name}: {reason}") from error

    @property
    def access(self) -> Access:
        """What attackers get of the target."""
        if self.settings.access is not None:
            return Access(self.settings.access)
        return Access.WHITE_BOX if self.inputs.target is None else self.inputs.target.access

    @property
    def most_queries(self) -> int | None:
        """The most images that all attacks send to the target; None: one does not say."""
        prior, classes = self.likely_prior, len(self.inputs.private.labels.unique())
        works = [a.workload(prior) for a in self.attacks.values() if isinstance(a, Measurable)]
        return sum(w.queries(classes) for w in works) if len(works) == len(self.attacks) else None

    @property
    def knows_recipe(self) -> bool:
        """Whether it is known how shadow models are trained."""
        return self.inputs.target is None or self.settings.recipe is not None

    def load_recipe(self) -> Recipe:
        """Return the recipe of a given target.

        Raises:
            ConfigError: it was not given, or it is wrong.
        """
        target, settings = self.inputs.target, self.settings
        if target is None or settings.recipe is None:
            raise ConfigError(
                f"--shadows {settings.shadows}: how the target was trained is not known; give --recipe"
            )
        return load_recipe(
            settings.recipe, training=settings.target_training, image_shape=target.image_shape,
            mean=settings.mean or target.mean, std=settings.std or target.std,
        )  # fmt: skip

    def with_tried_recipe(self) -> Plan:
        """Return the plan with what a trial of the recipe warns of.

        Raises:
            InputError: the recipe is not known though there are shadow models, or cannot train a model.
        """
        if self.inputs.target is None or not (self.shadows or self.settings.recipe):
            return self
        inputs = self.inputs
        warnings = self.load_recipe().check(inputs.private, device=self.device)
        return replace(self, inputs=replace(inputs, warnings=(*inputs.warnings, *warnings)))

    def with_advice(self, reporter: Reporter) -> Plan:
        """Return the plan with what its attacks warn of, if the target is given, and say it."""
        target, inputs = self.inputs.target, self.inputs
        if target is None:
            return self
        advising = [one for one in self.attacks.values() if isinstance(one, Advising)]
        advice = [text for one in advising for text in one.advice(target, inputs.private)]
        found = [
            name for name, one in self.attacks.items() if isinstance(one, WeightReconstruction)
        ]
        if found and target.frozen_until is not None and self.settings.embedding != "backbone":
            advice.append(
                f"{found[0]} looks for features of the frozen backbone, and --embedding "
                f"{self.settings.embedding} compares pictures drawn after them; give --embedding backbone"
            )
        for text in advice:
            reporter.warn(text)
        return replace(self, inputs=replace(inputs, warnings=(*inputs.warnings, *advice)))

    @property
    def likely_target(self) -> Target:
        """Return the target, or an untrained network of the kind that will be trained."""
        if self.inputs.target is not None:
            return self.inputs.target
        architecture = self.settings.target_training.architecture
        untrained = untrained_target(self.inputs.private, self.shape, architecture)
        return untrained.restricted(self.access)

    @property
    def likely_prior(self) -> Prior:
        """Return the prior that attacks will use, or an untrained one with the same abilities.

        An adaptation leaves a prior what it was, except that some arms condition it on classes.
        """
        if self.adapts and ARMS[self.settings.arm].conditional:
            untrained, classes = untrained_prior(self.prior_shape), self.inputs.private.classes
            return condition_on_classes(untrained, len(classes), rng=generator(0))
        if isinstance(self.prior, PriorTraining):
            return untrained_prior(self.shape)
        return self.prior.prior if isinstance(self.prior, PriorFile) else self.prior

    @property
    def adapts(self) -> bool:
        """Whether the prior is fine-tuned against the target."""
        return not (self.settings.adaptation.keeps_prior or isinstance(self.prior, Prior))

    @property
    def shadows(self) -> int:
        """Return the number of shadow models; 0 until ``auto`` is decided."""
        return 0 if self.settings.shadows == "auto" else int(self.settings.shadows)

    def needs_public_network(self, *, exposure: bool) -> bool:
        """Return whether an embedding is the public network's. exposure: whether exposure is measured."""
        s = self.settings
        names = [s.embedding, s.features]
        if exposure:
            names.append(s.exposure_distance)
        if ARMS[s.arm].natural_gradient and self.adapts:
            names.append(s.guidance_embedding)
        return "public" in names

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape (C, S, S) of the images of networks that are trained here."""
        return (self.inputs.private.channels, self.work, self.work)

    @property
    def prior_shape(self) -> tuple[int, int, int]:
        """Return the shape (C, S, S) of the style-based prior's images."""
        return self.prior.prior.image_shape if isinstance(self.prior, PriorFile) else self.shape

    @property
    def public_at_work(self) -> ImageSet:
        """Return the public images at the size of networks that are trained here."""
        return self.inputs.public_as(size=self.work, channels=self.shape[0])

    @property
    def public_for_prior(self) -> ImageSet:
        """Return the public images at the prior's size."""
        channels, size, _ = self.prior_shape
        return self.inputs.public_as(size=size, channels=channels)

    def remedy(self, stage: str, kept: str) -> AbstractContextManager[None]:
        """Return a context that says what to lower if ``stage`` runs out of memory, and what is kept."""
        lower = _LOWER.get(stage, "--memory")
        if stage in self.attacks:
            lower = f"batch_size, as in --set 'attack=[{{class: {stage}, batch_size: 20}}]'"
        return memory_remedy(stage, f"lower {lower}, or use a smaller --preset; {kept}")

    def announcement(self, folder: Path, estimate: object) -> str:
        """Return a description of the audit, to be shown before it begins."""
        s = self.settings
        prior, side = "style-based, trained on the public images", self.prior_shape[1]
        if isinstance(self.prior, PriorFile):
            prior = str(s.prior)
        elif isinstance(self.prior, Prior):
            prior, side = "own", self.prior.image_shape[1]
        recipe = s.recipe or "trained as the target was"
        shadows = f"{self.shadows} models, {recipe}" if self.shadows else "none (see --shadows)"
        return (
            f"inversight audit, preset {s.preset}, seed {s.seed}, device {self.device}\n"
            f"  data       {self.inputs.split}\n"
            f"  target     {s.target or 'a small classifier, trained on the private images'}\n"
            f"  access     {self.access}{self._limited()}\n"
            f"  prior      {prior}, {side}x{side}, arm {s.arm}\n"
            f"  attack     {', '.join(self.attacks)}\n"
            f"  shadows    {shadows}\n"
            f"  distance   {s.embedding}; features {s.features}; guidance {s.guidance_embedding}\n"
            f"  results    {folder}\n"
            f"  estimate   {estimate}"
        )

    def _limited(self) -> str:
        """Return what limited access means for the attacks, in words; "" with white-box access."""
        if self.access is Access.WHITE_BOX:
            return ""
        most = self.most_queries
        images = "an unknown number of images" if most is None else f"at most {most:,} images"
        return f": no gradients; the attacks send it {images} (fewer: --set attack.most_queries=N)"

    def manifest(self) -> dict[str, Any]:
        """Return what run.json says of the audit."""
        s, i = self.settings, self.inputs
        packages = ("torch", "torchvision", "timm", "numpy", "scikit-learn")
        sets = {"private": i.private, "holdout": i.holdout, "public": i.public}
        inputs: dict[str, dict[str, Any]] = {
            name: {
                "path": str(getattr(s, name) or "embedded digits"),
                "images": len(images),
                "classes": len(images.classes),
                "size": images.size,
                "fingerprint": images.fingerprint(),
            }
            for name, images in sets.items()
            if images is not None
        }
        if isinstance(self.prior, PriorFile):
            inputs["prior"] = {
                "path": str(s.prior),
                "size": self.prior_shape[1],
                "fingerprint": self.prior.fingerprint,
            }
        if s.group_by is not None:
            real = {name: sets[name] for name in ("private", "holdout")}
            inputs["groups"] = {"path": s.group_by, "fingerprint": groups_fingerprint(real)}
        same = ("seed", "preset", "images", "embedding", "features", "guidance_embedding")
        return {
            **provenance(),
            **{name: getattr(s, name) for name in same},
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "given": anchored(s),
            "settings": to_mapping(s),
            "inputs": inputs,
            "split": i.split,
            "notes": [] if self.chosen is None else [self.chosen],
            "chosen": self.chosen,
            "warnings": list(i.warnings),
            "arm": "none (own prior)" if isinstance(self.prior, Prior) else s.arm,
            "attacks": list(self.attacks),
            "target_access": str(self.access),
            "access": {name: str(one.access) for name, one in self.attacks.items()},
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in packages},
            },
        }


def check_thresholds(settings: AuditSettings) -> None:
    """Check that every threshold of --fail-on can be checked at the end.

    Raises:
        ConfigError: the metric of one needs what the audit will not have.
    """
    with_holdout = settings.private is None or settings.holdout is not None
    models = SHADOWS[settings.preset] if settings.shadows == "auto" else int(settings.shadows)
    for limit in thresholds(settings.fail_on):
        limit.check(holdout=with_holdout, embedding=settings.embedding, shadows=models)


def workers_of(plan: Plan) -> tuple[int, int]:
    """Return the number of processes that work on shadow models, and the threads of each."""
    if plan.cluster is not None:
        return plan.cluster.slots, plan.cluster.threads
    cores = (plan.settings.threads or usable_threads()) if plan.device.type == "cpu" else 1
    # Each has networks and features of its own in memory, and there are few blocks to share.
    workers = plan.settings.workers or min(cores, _MOST_WORKERS)
    return workers, max(1, cores // workers)


@contextmanager
def with_cluster(plan: Plan) -> Iterator[Plan]:
    """Give the plan with the Ray cluster that its shadow models run on, if any, joined for the block.

    Raises:
        ConfigError: it cannot be joined.
    """
    workers, threads = workers_of(plan)
    address = None if plan.settings.shadows == 0 else plan.settings.ray
    with joined(address, workers=workers, threads=threads, device=plan.device) as cluster:
        yield replace(plan, cluster=cluster)


def _build_attacks(specs: Iterable[str | dict[str, Any]]) -> dict[str, Attack]:
    """Return the attacks by their names.

    Raises:
        ConfigError: one is wrong, or two have one name.
    """
    attacks: dict[str, Attack] = {}
    for spec in specs:
        name, attack = build_attack(spec)
        if name in attacks:
            raise ConfigError(f"--attack {name}: is given twice")
        attacks[name] = attack
    return attacks


def _read_prior(settings: AuditSettings) -> PriorFile | PriorTraining | Prior:
    """Return the prior that was given, or how it is trained."""
    path = prior_path(settings)
    if path is not None:
        return read_prior(path)
    training = prior_training(settings)
    if training is not None:
        return training
    own = build(settings.prior, {}, role="prior")
    if not isinstance(own, Prior):
        raise ConfigError(
            "prior: expected `image_shape`, `sample(n, *, rng)` and a call from latents to "
            f"images; found {type(own).__name__}"
        )
    if own.image_shape[0] not in (1, 3):
        raise ConfigError(f"prior: expected 1 or 3 channels, found {own.image_shape[0]}")
    return own


def check_unchanged(now: Mapping[str, Any], before: Mapping[str, Any], path: Path) -> None:
    """Check that images, groups and prior in the manifest ``now`` are those of the manifest of ``path``.

    Raises:
        RunError: naming the first that has changed.
    """
    for name, facts in now["inputs"].items():
        if facts["fingerprint"] != before["inputs"].get(name, {}).get("fingerprint"):
            what = {"prior": "prior has", "groups": "groups have"}.get(name, f"{name} images have")
            raise RunError(
                f"{path}: the {what} changed since the run began ({facts['path']}); start a new run"
            )
