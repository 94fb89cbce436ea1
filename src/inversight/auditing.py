"""The whole audit: target, prior, adaptation, attack, scores, report. The only module that knows
every stage."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import io
import json
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import ImageFilter

from inversight.adaptation import adapt, check_arm, check_public
from inversight.adaptation.collapse import LOW, class_entropy
from inversight.attacks import (
    ATTACKS,
    Attack,
    check_fits,
    control,
    run_attack,
    write_reconstructions,
)
from inversight.attacks.base import left_out
from inversight.attacks.budget import within
from inversight.attacks.control import least_truncation
from inversight.config import build, to_mapping
from inversight.console import Quiet, Reporter
from inversight.data import (
    ImageSet,
    check_known_classes,
    check_no_class_missing,
    check_overlap,
    check_size,
    digits,
    load_folder,
    to_pil,
    working_size,
)
from inversight.device import memory_remedy, pick_device
from inversight.embeddings import Embedding, check_name, named_embedding
from inversight.embeddings.named import Use
from inversight.errors import ConfigError, InputError, RunError, StageError
from inversight.estimate import Estimate, estimate, untrained_target
from inversight.evaluation import check_pairs, evaluate, nearness
from inversight.gate import exceeded, gates
from inversight.ledger import SIGNALS_FILE, exposure_table, hidden, join
from inversight.networks import FILE_NAME, SavedClassifier, load_classifier, save_classifier
from inversight.outputs import write_report
from inversight.priors import Prior, StylePrior, Watch, train_prior, untrained_prior
from inversight.priors.classes import conditioned
from inversight.priors.given import (
    COLOURS,
    PRIOR_FILE,
    GivenPrior,
    check_adaptable,
    check_channels,
    few_images,
    read_prior,
)
from inversight.report import GalleryItem, load_report_data
from inversight.run import Run, read_manifest, write_json
from inversight.scored import FILES, write_evaluation
from inversight.seeding import generator
from inversight.settings import AuditSettings, prior_path, prior_training, resolve
from inversight.target import (
    Access,
    Target,
    absolute_spec,
    accuracy_on,
    describe_target,
    load_target,
    target_of,
)
from inversight.training import Training, rotation_task, train_classifier
from inversight.watching import FrechetToPublic, watched_features

LEDGER = "samples.parquet"
BUDGET = "budget.parquet"
"""Risk against queries, if --budget asks for it."""
CURVES = ("covered", "ddcs_best", "ddcs_average")
"""Measures that metrics.json has against queries too, if --budget asks for it."""
LOW_TARGET_ACCURACY = 0.7
LOW_EVALUATOR_ACCURACY = 0.6
GALLERY = 24
"""Most exposed images shown in the report."""
_LOWER = {
    "target": "target_training.batch_size",
    "evaluator": "evaluator_training.batch_size",
    "public-network": "public_training.batch_size",
    "prior": "prior.images_at_once",
    "adaptation": "adaptation.images_at_once",
    "scores": "--memory",
    "signals": "--memory",
}
"""What to lower where a stage's memory runs out."""


@dataclass(frozen=True)
class AuditResult:
    """What an audit leaves: the run folder, metrics.json and samples.parquet, read.

    crossed: the thresholds of ``fail_on`` that hold, each with the value found.
    """

    run: Path
    metrics: dict[str, dict[str, Any]]
    samples: pd.DataFrame
    warnings: tuple[str, ...]
    crossed: tuple[str, ...] = ()

    @property
    def exceeded(self) -> bool:
        """Whether any threshold of ``fail_on`` holds."""
        return bool(self.crossed)

    @property
    def report(self) -> Path:
        """The report's path."""
        return self.run / "report.html"


@dataclass(frozen=True)
class Inputs:
    """Everything that was read and checked before a run begins."""

    private: ImageSet
    holdout: ImageSet | None
    public: ImageSet
    target: Target | None
    evaluator: Target | None
    split: str
    warnings: tuple[str, ...]
    size: int
    channels: int

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The model's class order: the given target's, or the private folder's."""
        return self.target.classes if self.target is not None else self.private.classes


def audit(
    *, out: Path | str | None = None, reporter: Reporter | None = None, **given: Any
) -> AuditResult:
    """Audit a classifier; without ``private`` the embedded digits are audited.

    ``given`` are fields of :class:`inversight.settings.AuditSettings` (``private``, ``public``,
    ``holdout``, ``target``, ``preset``, ``seed``, ...), as on the command line.

    Raises:
        InputError: something given is wrong; nothing has been written.
        StageError: a stage failed; what is finished can be resumed.
    """
    reporter = reporter or Quiet()
    settings = resolve(given)
    folder = Path(out) if out is not None else default_folder()
    Run.check_new(folder, needed_bytes=0)
    plan = Plan.prepare(settings, reporter)
    reporter.say("Timing a few steps of every stage, to say how long the audit takes ...")
    forecast = plan.forecast()
    Run.check_new(folder, needed_bytes=forecast.disk_bytes)
    reporter.say(plan.announcement(folder, forecast))
    run = Run.create(folder, plan.manifest())
    try:
        return plan.execute(run, reporter)
    finally:
        run.close()


def resume(folder: Path | str, *, reporter: Reporter | None = None) -> AuditResult:
    """Go on with a run that was stopped; it ends with the tables it would have had.

    Raises:
        RunError: not a run, in use, or its inputs have changed.
    """
    reporter = reporter or Quiet()
    path = Path(folder)
    manifest = read_manifest(path)
    if "part_of" in manifest:
        raise RunError(
            f"--resume {path}: is part of a comparison of defences; run the same `inversight "
            "defend` again, which goes on where it stopped"
        )
    settings = resolve(manifest["given"])
    plan = Plan.prepare(settings, reporter)
    check_unchanged(plan, manifest, path)
    run = Run.open(path)
    try:
        reporter.say(f"Resuming {path}")
        return plan.execute(run, reporter)
    finally:
        run.close()


def check_unchanged(plan: Plan, manifest: dict[str, Any], path: Path) -> None:
    """See that images and prior are those that the run in ``path`` began with.

    Raises:
        RunError: naming the first that has changed.
    """
    for name, facts in plan.manifest()["inputs"].items():
        before = manifest["inputs"].get(name, {}).get("fingerprint")
        if facts["fingerprint"] != before:
            what = "prior has" if name == "prior" else f"{name} images have"
            raise RunError(
                f"{path}: the {what} changed since the run began ({facts['path']}); start a new run"
            )


def default_folder() -> Path:
    """``runs/audit-DATE-TIME`` below the current folder."""
    return Path("runs") / f"audit-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def read_inputs(
    settings: AuditSettings, reporter: Reporter, public_size: int | None = None
) -> Inputs:
    """Read and check all images and models that were given.

    Public images are brought to ``public_size``; none: to the private images' size.

    Raises:
        InputError: the first thing wrong.
    """
    if settings.private is None:
        found = digits(seed=settings.seed)
        private, holdout, public = found.private, found.holdout, found.public
        if settings.limit:
            private, holdout = (_limited(s, settings.limit) for s in (private, holdout))
        inputs = Inputs(
            private, holdout, public, None, None, found.description, (), found.private.size, 1
        )
    else:
        inputs = _read_folders(settings, reporter, public_size)
    if inputs.private.size < 8:
        raise InputError("--private: images are smaller than 8x8; give --size 8 or more")
    if len(inputs.private.labels.unique()) < 2:
        raise InputError(
            "--private: has one class; a classifier needs at least two (is the folder one level "
            "too deep?)"
        )
    evaluator = None
    if settings.evaluator is not None:
        evaluator = load_target(
            settings.evaluator,
            classes=inputs.private.classes,
            class_order=settings.classes,
            size=inputs.size,
            channels=inputs.channels,
            mean=None,
            std=None,
            trust=settings.trust_target,
            role="--evaluator",
        )
        if inputs.target is not None and evaluator.classes != inputs.target.classes:
            raise InputError(
                "--evaluator and --target have different classes or class orders; give the order "
                "with --classes FILE"
            )
    inputs = replace(inputs, evaluator=evaluator)
    classes = inputs.classes
    return replace(
        inputs,
        private=inputs.private.relabel(classes, role="--private"),
        holdout=None
        if inputs.holdout is None
        else inputs.holdout.relabel(classes, role="--holdout"),
    )


def _limited(images: ImageSet, limit: int) -> ImageSet:
    kept = images.select((images.labels < limit).nonzero().squeeze(1))
    return replace(kept, classes=images.classes[:limit])


def _read_folders(settings: AuditSettings, reporter: Reporter, public_size: int | None) -> Inputs:
    if settings.private is None or settings.public is None:
        raise ConfigError("--private and --public are both needed")
    size = settings.size
    private = load_folder(
        settings.private,
        role="--private",
        size=size,
        limit=settings.limit,
        progress=reporter.stage("reading private"),
    )
    if settings.target is None:
        check_size(private.size, given=size is not None)
    public = load_folder(
        settings.public,
        role="--public",
        size=public_size or size or private.size,
        labelled=False,
        progress=reporter.stage("reading public"),
    )
    holdout = None
    if settings.holdout is not None:
        holdout = load_folder(
            settings.holdout,
            role="--holdout",
            size=size or private.size,
            progress=reporter.stage("reading holdout"),
        )
        if settings.limit:
            holdout = _matching(holdout, private.classes)
        check_known_classes(holdout, private.classes, f"--holdout {settings.holdout}")
        check_no_class_missing(holdout, private.classes, f"--holdout {settings.holdout}")
    channels = max(private.channels, public.channels)
    private, public = (s.resized(size=s.size, channels=channels) for s in (private, public))
    if holdout is not None:
        holdout = holdout.resized(size=holdout.size, channels=channels)
    warnings = []
    shared = check_overlap(private, public, ("--private", "--public"), allow=settings.allow_overlap)
    if holdout is not None:
        shared += check_overlap(
            private, holdout, ("--private", "--holdout"), allow=settings.allow_overlap
        )
        shared += check_overlap(
            public, holdout, ("--public", "--holdout"), allow=settings.allow_overlap
        )
    if shared:
        warnings.append(
            f"{shared} image(s) are in more than one of private, holdout and public "
            "(--allow-overlap was given): the figures do not measure leakage"
        )
    target = None
    if settings.target is not None:
        target = load_target(
            settings.target,
            classes=private.classes,
            class_order=settings.classes,
            size=private.size,
            size_given=size is not None,
            channels=channels,
            mean=settings.mean,
            std=settings.std,
            trust=settings.trust_target,
        )
    split = (
        f"private: {len(private)} images in {len(private.classes)} classes ({settings.private}); "
        f"public: {len(public)} images ({settings.public}); holdout: "
        + (f"{len(holdout)} images ({settings.holdout})" if holdout is not None else "none")
    )
    return Inputs(
        private, holdout, public, target, None, split, tuple(warnings), private.size, channels
    )


def _matching(images: ImageSet, classes: tuple[str, ...]) -> ImageSet:
    """The rows whose class is among ``classes``, relabelled to the classes that remain."""
    keep = [i for i, y in enumerate(images.labels.tolist()) if images.classes[y] in classes]
    kept = images.select(torch.tensor(keep, dtype=torch.int64))
    names = tuple(c for c in images.classes if c in classes)
    position = {name: i for i, name in enumerate(names)}
    labels = [position[images.classes[y]] for y in kept.labels.tolist()]
    return replace(kept, labels=torch.tensor(labels, dtype=torch.int64), classes=names)


@dataclass(frozen=True)
class Plan:
    """A checked audit, ready to run."""

    settings: AuditSettings
    inputs: Inputs
    attacks: dict[str, Attack]
    own_prior: Prior | None
    given_prior: GivenPrior | None
    work: int
    device: torch.device

    @classmethod
    def prepare(cls, settings: AuditSettings, reporter: Reporter) -> Plan:
        """Read and check everything that can be wrong.

        Raises:
            InputError: the first thing wrong; nothing has been written.
        """
        device = pick_device(settings.device)
        attacks: dict[str, Attack] = {}
        for spec in settings.attack:
            made = build(spec, ATTACKS, role="--attack")
            name = spec if isinstance(spec, str) else str(spec["class"])
            name = name.rpartition(":")[2]
            if not isinstance(made, Attack):
                raise ConfigError(
                    f"--attack {name}: expected `access` and `run(target, prior, labels, *, rng, "
                    "progress)`"
                )
            if name in attacks:
                raise ConfigError(f"--attack {name}: is given twice")
            attacks[name] = made
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
        for name, role in roles:
            check_name(name, role=role)
        for gate in gates(settings.fail_on):
            without = settings.private is not None and settings.holdout is None
            gate.check(holdout=not without, embedding=settings.embedding)
        check_pairs(settings.pairs)
        for name, role in roles:
            unused = role == "--guidance-embedding" and settings.arm != "natural-gradient"
            if name not in ("public", "evaluator") and not unused:
                # Missing weights and broken classes come to light here, before anything long.
                named_embedding(
                    name,
                    use="distance",
                    role=role,
                    size=8,
                    public_network=None,
                    evaluator=None,
                )
        size = None if given is None else given.prior.image_shape[1]
        inputs = read_inputs(settings, reporter, size)
        work = working_size(inputs.size, settings.working_size)
        if own is not None and own.image_shape[0] not in (1, 3):
            raise ConfigError(f"prior: expected 1 or 3 channels, found {own.image_shape[0]}")
        if given is not None and path is not None:
            word = COLOURS[given.prior.image_shape[0]]
            check_channels(
                given.prior,
                path,
                inputs.channels,
                "the private and public images",
                f"save the images in {word}, or give a prior that was trained on images like them",
            )
            if not settings.adaptation.idle:
                check_adaptable(given.prior, path)
        plan = cls(settings, inputs, attacks, own, given, work, device)
        plan.check_parts()
        return plan

    def check_parts(self) -> None:
        """Refuse now what would fail when target and prior have been trained for hours.

        Raises:
            ConfigError: the arm or an attack needs what the one or the other will lack, or an attack's
                settings contradict each other.
        """
        target, prior = self.likely_target, self.likely_prior
        if self.own_prior is None and not self.settings.adaptation.idle:
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
        """The target, or an untrained network of the kind that it will be."""
        if self.inputs.target is not None:
            return self.inputs.target
        architecture = self.settings.target_training.architecture
        return untrained_target(self.inputs.private, self.shape, architecture)

    @property
    def likely_prior(self) -> Prior:
        """What attacks will be given as a prior, or something untrained that can do as much.

        An adaptation leaves a prior what it was, except that pseudo-labels conditions it on classes.
        """
        if self.own_prior is not None:
            return self.own_prior
        if not self.settings.adaptation.idle and self.settings.arm == "pseudo-labels":
            untrained = untrained_prior(self.prior_shape)
            return conditioned(untrained, len(self.inputs.classes), rng=generator(0))
        if self.given_prior is not None:
            return self.given_prior.prior
        return untrained_prior(self.shape)

    @property
    def needs_public_network(self) -> bool:
        names = [self.settings.embedding, self.settings.features]
        if self.settings.arm == "natural-gradient" and self.own_prior is None:
            names.append(self.settings.guidance_embedding)
        return "public" in names

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, S, S) at which networks trained here work."""
        return (self.inputs.channels, self.work, self.work)

    @property
    def prior_shape(self) -> tuple[int, int, int]:
        """(C, S, S) of the style-based prior's images."""
        return self.shape if self.given_prior is None else self.given_prior.prior.image_shape

    @cached_property
    def public_at_work(self) -> ImageSet:
        return self.inputs.public.resized(size=self.work, channels=self.inputs.channels)

    @cached_property
    def public_for_prior(self) -> ImageSet:
        """Public images at the prior's size."""
        channels, size, _ = self.prior_shape
        if self.prior_shape == self.shape:
            return self.public_at_work
        return self.inputs.public.resized(size=size, channels=channels)

    def remedy(self, stage: str, kept: str) -> AbstractContextManager[None]:
        """Says what to lower if ``stage`` runs out of memory, and what is ``kept``."""
        lower = _LOWER.get(stage)
        if stage in self.attacks:
            lower = f"batch_size, as in --set 'attack=[{{class: {stage}, batch_size: 20}}]'"
        return memory_remedy(
            stage, f"lower {lower or '--memory'}, or use a smaller --preset; {kept}"
        )

    def forecast(self) -> Estimate:
        """Time and memory, measured by short trials of the same code on this machine."""
        return estimate(
            self.settings,
            private=self.inputs.private,
            public=self.public_at_work,
            public_for_prior=self.public_for_prior,
            shape=self.shape,
            attacks=self.attacks,
            target=self.inputs.target,
            trains_target=self.inputs.target is None,
            trains_evaluator=self.inputs.evaluator is None,
            trains_public=self.needs_public_network,
            own_prior=self.own_prior,
            given_prior=None if self.given_prior is None else self.given_prior.prior,
            device=self.device,
            remedy=lambda stage: self.remedy(stage, "nothing has been written"),
        )

    def announcement(self, folder: Path, forecast: Estimate) -> str:
        """What is going to happen, before the long part."""
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
            "version": importlib.metadata.version("inversight"),
            "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "seed": s.seed,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "preset": s.preset,
            "given": _anchored(to_mapping(s)),
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

    def execute(self, run: Run, reporter: Reporter) -> AuditResult:
        """Run every stage that is not done yet."""
        return _Execution(self, run, reporter).all()


class _Execution:
    """The stages of one run, each written atomically and skipped if it is there."""

    def __init__(self, plan: Plan, run: Run, reporter: Reporter) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.inputs = plan.inputs
        self.run = run
        self.reporter = reporter
        self.warnings: list[str] = list(plan.inputs.warnings)
        self.notes: list[str] = []
        self.queries: dict[str, int] = {}

    def all(self) -> AuditResult:
        target = self.target()
        evaluator = self.evaluator()
        public_network = self.public_network() if self.plan.needs_public_network else None
        given = self.prior(public_network)
        prior = self.adapted(given, target, public_network)
        for name, attack in self.plan.attacks.items():
            self.attack(name, attack, target, prior)
        reconstructions = self.collect()
        unguided = self.control(given, reconstructions) if self.inputs.holdout is None else None
        metrics, samples = self.scores(reconstructions, unguided, evaluator, public_network)
        samples = self.signals(samples, target, evaluator, public_network)
        if self.settings.budget:
            metrics = self.budgets(metrics, target, prior, evaluator, public_network)
        self.run.record(warnings=self.warnings, notes=self.notes)
        self.report(reconstructions)
        self.run.record(finished=True)
        crossed = exceeded(gates(self.settings.fail_on), metrics)
        return AuditResult(self.run.path, metrics, samples, tuple(self.warnings), crossed)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.reporter.warn(text)

    def rng(self, stage: str) -> torch.Generator:
        return generator(self.settings.seed, stage)

    def stage(self, name: str, build: Callable[[Path], None], part: str | None = None) -> Path:
        """The folder of stage ``name``; ``part`` is what it is called where it differs."""
        kept = (
            f"what is finished is kept in {self.run.path}, and --resume goes on with these settings "
            "where there is more memory"
        )
        with self.plan.remedy(part or name, kept):
            return self.run.stage(name, build)

    def _train(
        self, stage: str, images: ImageSet, training: Training, file: str, folder: Path
    ) -> None:
        trained = train_classifier(
            images,
            training=training,
            image_shape=self.plan.shape,
            rng=self.rng(stage),
            progress=self.reporter.stage(stage),
            device=self.plan.device,
        )
        save_classifier(trained.classifier, folder / file)
        facts = {
            "epochs": trained.epochs,
            "train_accuracy": trained.train_accuracy,
            "validation_accuracy": trained.validation_accuracy,
        }
        write_json(folder / "facts.json", facts)

    def target(self) -> Target:
        """The model under audit, trained here if none was given."""
        target = self.inputs.target
        if target is None:
            folder = self.stage(
                "target",
                lambda f: self._train(
                    "target", self.inputs.private, self.settings.target_training, FILE_NAME, f
                ),
            )
            target = target_of(load_classifier(folder), "trained by this audit")
            self.notes.append(
                "No target was given: a small classifier was trained on the private images, so the "
                "result is about that classifier and not about a model of yours."
            )
        target = target.to(self.plan.device)
        accuracy = accuracy_on(target, self.inputs.private)
        if accuracy < LOW_TARGET_ACCURACY:
            self.warn(
                f"the target puts only {accuracy:.0%} of the private images in their class; usual "
                "causes: class order (--classes), normalisation (--mean / --std), input size "
                "(--size). An audit of a model that is called wrongly means nothing"
            )
        self.run.record(target={**describe_target(target), "private_accuracy": accuracy})
        return target

    def evaluator(self) -> Target:
        """The independent judge, trained here if none was given."""
        evaluator = self.inputs.evaluator
        if evaluator is None:
            training = self.settings.evaluator_training
            if self.inputs.target is None and (
                training.architecture == self.settings.target_training.architecture
            ):
                self.warn(
                    "evaluator_training.architecture is the target's own; an evaluator that is the "
                    "target's twin shares its mistakes"
                )
            folder = self.stage(
                "evaluator",
                lambda f: self._train("evaluator", self.inputs.private, training, FILE_NAME, f),
            )
            evaluator = target_of(load_classifier(folder), "trained by this audit")
        evaluator = evaluator.to(self.plan.device)
        facts = describe_target(evaluator)
        if self.inputs.holdout is not None:
            accuracy = accuracy_on(evaluator, self.inputs.holdout)
            facts["holdout_accuracy"] = accuracy
            if accuracy < LOW_EVALUATOR_ACCURACY:
                self.warn(
                    f"the evaluator puts only {accuracy:.0%} of the holdout in their class; an "
                    "evaluator that cannot classify real images cannot judge reconstructions, so "
                    "read accuracy and KNN distance with care"
                )
        else:
            facts["holdout_accuracy"] = None
            self.warn(
                "no holdout was given, so the evaluator could not be checked on images it never saw"
            )
        self.run.record(evaluator=facts)
        return evaluator

    def public_network(self) -> SavedClassifier:
        """A feature network that has seen the public images alone."""
        images = self.plan.public_at_work
        task = images if len(images.classes) > 1 else rotation_task(images)
        folder = self.stage(
            "public-network",
            lambda f: self._train(
                "public-network", task, self.settings.public_training, FILE_NAME, f
            ),
        )
        saved = load_classifier(folder)
        saved.module.to(self.plan.device)
        return saved

    def prior(self, public_network: SavedClassifier | None) -> Prior:
        """The generator of images like the public ones."""
        given = self.plan.given_prior
        if given is not None:
            self.notes.append(f"The prior was made before: {self.settings.prior}.")

            def copy(folder: Path) -> None:
                shutil.copyfile(given.file, folder / PRIOR_FILE)

            self.stage("prior", copy)
            return given.prior.to(self.plan.device)
        training = prior_training(self.settings)
        if self.plan.own_prior is not None or training is None:
            self.notes.append(
                "The prior is the user's own; it was used as it is, without adaptation."
            )
            if self.plan.own_prior is None:
                raise ConfigError("prior: none")
            return self.plan.own_prior

        def fill(folder: Path) -> None:
            train_prior(
                self.plan.public_for_prior.images,
                training=training,
                rng=self.rng("prior"),
                progress=self.reporter.stage("prior"),
                checkpoint=folder / "checkpoint.safetensors",
                device=self.plan.device,
                watch=self.watch(folder, public_network),
            ).save(folder / PRIOR_FILE)
            (folder / "checkpoint.safetensors").unlink(missing_ok=True)

        folder = self.stage("prior", fill)
        return StylePrior.load(folder / PRIOR_FILE).to(self.plan.device)

    def watch(self, folder: Path, public_network: SavedClassifier | None) -> Watch:
        """Looks at a prior in training, with features that cost little beside it: see decisions.md."""
        name = "none"
        if public_network is not None:
            name = "public"
        elif self.settings.features == "pixel" or (
            self.settings.features == "inception" and self.plan.device.type != "cpu"
        ):
            name = self.settings.features
        size = self.plan.prior_shape[1]
        embedding = watched_features(name, size=size, public_network=public_network)
        if embedding is None:
            return Watch(folder)
        images = self.plan.public_for_prior.images
        return Watch(folder, FrechetToPublic(images, embedding, self.plan.device))

    def adapted(
        self, prior: Prior, target: Target, public_network: SavedClassifier | None
    ) -> Prior:
        """The prior fine-tuned against the target."""
        if not isinstance(prior, StylePrior):
            return prior
        if self.settings.adaptation.idle:
            self.notes.append("The prior was used as it is: adaptation.steps is 0.")
            return prior
        few = few_images(len(self.inputs.public))
        if few is not None and self.settings.private is not None:
            self.warn(few)
        size = self.plan.prior_shape[1]
        metric: Embedding | None = None
        if self.settings.arm == "natural-gradient":
            metric = named_embedding(
                self.settings.guidance_embedding,
                use="distance",
                role="--guidance-embedding",
                size=size,
                public_network=public_network,
                evaluator=None,
                working_size=max(64, size),
            )

        def fill(folder: Path) -> None:
            adapt(
                prior,
                target,
                self.plan.public_for_prior.images,
                arm=self.settings.arm,
                adaptation=self.settings.adaptation,
                training=prior.training,
                metric=metric,
                rng=self.rng("adaptation"),
                progress=self.reporter.stage("adaptation"),
                checkpoint=folder / "checkpoint.safetensors",
                watch=self.watch(folder, public_network),
            ).save(folder / PRIOR_FILE)
            (folder / "checkpoint.safetensors").unlink(missing_ok=True)

        folder = self.stage("adaptation", fill)
        adapted = StylePrior.load(folder / PRIOR_FILE).to(self.plan.device)
        if adapted.pivots is not None:
            self.notes.append(
                f"Attacks that begin with a pool of samples began with {len(adapted.pivots)} public images "
                "as well, those that the target is surest of (adaptation.pivots): where reconstructions "
                "are near, it may be the public images that are."
            )
        if self.settings.arm != "vanilla":
            self._check_collapse(target, prior, adapted)
        if self.settings.arm != "vanilla" or adapted.pivots is not None:
            blind = [n for n, a in self.plan.attacks.items() if a.access is not Access.WHITE_BOX]
            if blind:
                self.notes.append(
                    f"{', '.join(blind)}: the attack itself had no gradients of the target, but the "
                    "prior was adapted with them; an attacker without them has --arm vanilla and no "
                    "adaptation.pivots."
                )
        return adapted

    def _check_collapse(self, target: Target, before: Prior, after: Prior) -> None:
        """Warn if the guidance has left fewer classes within the attack's reach."""
        was, now = (
            class_entropy(target, one, rng=self.rng("class-entropy")) for one in (before, after)
        )
        self.run.record(class_entropy={"prior": was, "adapted": now})
        if now < LOW * was:
            self.warn(
                f"the adapted prior has collapsed onto few classes (entropy of the target's mean "
                f"prediction {now:.2f} nats, {was:.2f} before): lower adaptation.weight, or take "
                "--arm balanced or --arm vanilla"
            )

    def attack(self, name: str, attack: Attack, target: Target, prior: Prior) -> None:
        """One attack's reconstructions as PNG files and latents."""
        labels = self.inputs.private.labels.unique(sorted=True)

        def fill(folder: Path) -> None:
            made = run_attack(
                attack,
                target,
                prior,
                labels,
                rng=self.rng(f"attack/{name}"),
                progress=self.reporter.stage(name),
            )
            write_reconstructions(folder, "images", made, classes=self.inputs.classes, name=name)
            classes = self.inputs.classes
            if self.settings.hash_ids:  # it is told in the report
                with self._hidden_names() as hide:
                    classes = tuple(map(hide, classes))
            missing = left_out(made, labels, classes)
            write_json(folder / "facts.json", {"queries": made.queries, "left_out": missing})

        file = self.stage(f"attack-{name}", fill, name) / "facts.json"
        if file.is_file():  # an earlier version's attack did not count
            facts = json.loads(file.read_text())
            self.queries[name] = facts["queries"]
            self.run.record(queries=self.queries)
            if facts.get("left_out"):
                self.warn(f"{name}: {facts['left_out']}")

    def budgets(
        self, metrics: dict[str, dict[str, Any]], target: Target, prior: Prior, evaluator: Target,
        public_network: SavedClassifier | None,
    ) -> dict[str, dict[str, Any]]:  # fmt: skip
        """budget.parquet: what each attack covers within so many queries, and as it was run.

        Returns ``metrics`` with the curves in them, as metrics.json has them then.
        """
        labels = self.inputs.private.labels.unique(sorted=True)
        distance = self._scoring(
            self.settings.embedding, "distance", "--embedding", evaluator, public_network
        )
        points: list[tuple[str, int | None, Path | None]] = []
        for name, attack in self.plan.attacks.items():
            used = self.queries[name]
            for queries in self.settings.budget:
                less = within(attack, queries, classes=len(labels), used=used)
                folder = None if less is None else self._cut(name, less, queries, target, prior)
                points.append((name, queries, folder))
            points.append((name, None, self.run.path / "stages" / f"attack-{name}"))

        def fill(folder: Path) -> None:
            rows = [self._point(*point, distance) for point in points]
            pd.DataFrame(rows).to_parquet(folder / BUDGET, index=False)
            write_json(folder / "metrics.json", with_curves(metrics, rows))

        folder = self.stage("budget", fill)
        self.run.publish(folder / BUDGET, BUDGET)
        if not (folder / "metrics.json").is_file():  # an earlier version's stage
            return metrics
        self.run.publish(folder / "metrics.json", "metrics.json")
        found: dict[str, dict[str, Any]] = json.loads((folder / "metrics.json").read_text())
        return found

    def _cut(self, name: str, attack: Attack, queries: int, target: Target, prior: Prior) -> Path:
        """The attack again with less of everything, held to ``queries`` in all."""
        labels = self.inputs.private.labels.unique(sorted=True)

        def fill(folder: Path) -> None:
            try:
                made = run_attack(
                    attack, target, prior, labels, rng=self.rng(f"attack/{name}"), limit=queries,
                    progress=self.reporter.stage(f"{name}, {queries:,} queries"),
                )  # fmt: skip
            except StageError as error:  # too little for a start
                write_json(folder / "facts.json", {"queries": None, "reason": str(error)})
                return
            write_reconstructions(folder, "images", made, classes=self.inputs.classes, name=name)
            write_json(folder / "facts.json", {"queries": made.queries})

        return self.stage(f"attack-{name}-within-{queries}", fill, name)

    def _point(
        self, name: str, queries: int | None, folder: Path | None, distance: Embedding
    ) -> dict[str, Any]:
        """One row of budget.parquet."""
        row: dict[str, Any] = {"attack": name, "budget": queries, "queries": None, "reason": None}
        row |= {"reconstructions": 0}
        row |= dict.fromkeys(("covered", "ddcs_best", "ddcs_average", "nearest_distance"))
        if folder is None:
            return row | {"reason": "too few queries for one candidate of each class"}
        facts = json.loads((folder / "facts.json").read_text())
        if "reason" in facts:
            return row | {"reason": facts["reason"]}
        made = load_folder(
            folder / "images", role="reconstructions", channels=self.inputs.channels
        ).relabel(self.inputs.classes, role="reconstructions")
        found = nearness(
            self.inputs.private, made, distance=distance, memory=self.settings.memory,
            seed=self.settings.seed, device=self.plan.device,
            progress=self.reporter.stage(f"budget: {name}"),
        )  # fmt: skip
        values = {key: one.value for key, one in found.items()}
        bounds = {
            f"{key}_{end}": getattr(found[key], end) for key in CURVES for end in ("low", "high")
        }
        return row | values | bounds | {"queries": facts["queries"], "reconstructions": len(made)}

    def collect(self) -> dict[str, ImageSet]:
        """Each attack's reconstructions; all of them together are in RUN/reconstructions."""

        def fill(folder: Path) -> None:
            for name in self.plan.attacks:
                source = self.run.path / "stages" / f"attack-{name}" / "images"
                for file in sorted(source.rglob("*.png")):
                    copy = folder / "reconstructions" / file.relative_to(source)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(file.read_bytes())

        folder = self.run.stage("reconstructions", fill)
        if not (self.run.path / "reconstructions").is_dir():
            self.run.publish(folder / "reconstructions", "reconstructions")
        found = {}
        for name in self.plan.attacks:
            images = load_folder(
                self.run.path / "stages" / f"attack-{name}" / "images",
                role="reconstructions",
                channels=self.inputs.channels,
            )
            found[name] = images.relabel(self.inputs.classes, role="reconstructions")
        return found

    def control(self, prior: Prior, reconstructions: dict[str, ImageSet]) -> ImageSet:
        """As many samples of the unadapted prior of each class as all attacks made, unguided."""
        labels = torch.cat([one.labels for one in reconstructions.values()])
        truncation = least_truncation(self.plan.attacks.values())

        def fill(folder: Path) -> None:
            made = control(
                prior, labels, rng=self.rng("control"), truncation=truncation,
                progress=self.reporter.stage("control"),
            )  # fmt: skip
            write_reconstructions(
                folder, "images", made, classes=self.inputs.classes, name="control"
            )

        folder = self.stage("control", fill)
        images = load_folder(folder / "images", role="control", channels=self.inputs.channels)
        return images.relabel(self.inputs.classes, role="control")

    def scores(
        self,
        reconstructions: dict[str, ImageSet],
        unguided: ImageSet | None,
        evaluator: Target,
        public_network: SavedClassifier | None,
    ) -> tuple[dict[str, dict[str, Any]], pd.DataFrame]:
        """metrics.json and the tables, of each attack and of all together."""

        def fill(folder: Path) -> None:
            distance = self._scoring(
                self.settings.embedding, "distance", "--embedding", evaluator, public_network
            )
            features = self._scoring(
                self.settings.features, "features", "--features", evaluator, public_network
            )
            found = evaluate(
                self.inputs.private,
                reconstructions,
                distance=distance,
                features=features,
                evaluator=evaluator,
                holdout=self.inputs.holdout,
                control=unguided,
                memory=self.settings.memory,
                seed=self.settings.seed,
                pairs=self.settings.pairs,
                fdr=self.settings.fdr,
                checkpoint=folder,
                device=self.plan.device,
                progress=self.reporter.stage("scores"),
            )
            if self.settings.hash_ids:
                with self._hidden_names() as hide:
                    write_evaluation(folder, found, hide=hide)
            else:
                write_evaluation(folder, found)

        folder = self.stage("scores", fill)
        for file in FILES:
            # The ledger is shown when the signals have joined it.
            if file != LEDGER and (folder / file).is_file():
                self.run.publish(folder / file, file)
        metrics = json.loads((folder / "metrics.json").read_text())
        return metrics, pd.read_parquet(folder / LEDGER)

    def signals(
        self,
        samples: pd.DataFrame,
        target: Target,
        evaluator: Target,
        public_network: SavedClassifier | None,
    ) -> pd.DataFrame:
        """What the target says of each private image, and its twins, joined to the ledger."""
        name = self.settings.embedding

        def fill(folder: Path) -> None:
            table = exposure_table(
                target,
                self.inputs.private,
                distance=self._scoring(name, "distance", "--embedding", evaluator, public_network),
                seen=name == "evaluator",
                memory=self.settings.memory,
                device=self.plan.device,
                progress=self.reporter.stage("signals"),
            )
            if self.settings.hash_ids:
                with self._hidden_names() as hide:
                    table = hidden(table, hide)
            table.to_parquet(folder / SIGNALS_FILE, index=False)
            join(samples, table).to_parquet(folder / LEDGER, index=False)

        folder = self.stage("signals", fill)
        for file in (SIGNALS_FILE, LEDGER):
            self.run.publish(folder / file, file)
        return pd.read_parquet(folder / LEDGER)

    def _scoring(
        self,
        name: str,
        use: Use,
        role: str,
        evaluator: Target,
        public_network: SavedClassifier | None,
    ) -> Embedding:
        return named_embedding(
            name,
            use=use,
            role=role,
            size=self.inputs.private.size,
            public_network=public_network,
            evaluator=evaluator,
        )

    @contextmanager
    def _hidden_names(self) -> Iterator[Callable[[str], str]]:
        """Names -> keyed hashes; the key and the names go to RUN/private-ids.json."""
        file = self.run.path / "private-ids.json"
        known = json.loads(file.read_text()) if file.is_file() else {"key": secrets.token_hex(16)}
        key = bytes.fromhex(known["key"])

        def hide(name: str) -> str:
            digest = hashlib.blake2b(name.encode(), key=key, digest_size=6).hexdigest()
            known[digest] = name
            return digest

        yield hide
        write_json(file, known)

    def report(self, reconstructions: dict[str, ImageSet]) -> None:
        """The report and the card, written anew each time: it is quick and shows every stage's time."""
        gallery = self._gallery(reconstructions) if self.settings.images != "none" else ()
        write_report(self.run.path, load_report_data(self.run.path, gallery=gallery))

    def _gallery(self, reconstructions: dict[str, ImageSet]) -> tuple[GalleryItem, ...]:
        samples = pd.read_parquet(self.run.path / "stages" / "scores" / "samples.parquet")
        real: dict[str, str] = {}
        if self.settings.hash_ids:
            real = json.loads((self.run.path / "private-ids.json").read_text())
        own = {name: i for i, name in enumerate(self.inputs.private.ids)}
        made = {
            name: image
            for one in reconstructions.values()
            for name, image in zip(one.ids, one.images, strict=True)
        }
        items = []
        for row in samples.head(GALLERY).itertuples():
            if not isinstance(row.nearest_reconstruction, str):
                continue
            private = own[real.get(str(row.id), str(row.id))]
            nearest = made[real.get(row.nearest_reconstruction, row.nearest_reconstruction)]
            items.append(
                GalleryItem(
                    id=str(row.id),
                    label=str(row.label),
                    score=float(row.ddcs_best),  # type: ignore[arg-type]
                    nearest_distance=float(row.nearest_distance),  # type: ignore[arg-type]
                    private_png=self._png(self.inputs.private.images[private]),
                    reconstruction_png=self._png(nearest),
                )
            )
        return tuple(items)

    def _png(self, image: torch.Tensor) -> bytes:
        picture = to_pil(image)
        if self.settings.images == "blurred":
            picture = picture.filter(ImageFilter.GaussianBlur(picture.width / 10))
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        return buffer.getvalue()


def with_curves(
    metrics: dict[str, dict[str, Any]], rows: list[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """``metrics`` with what ``rows`` of budget.parquet say of a measure beside it, as ``within``."""
    found = {key: dict(value) for key, value in metrics.items()}
    for key in CURVES:
        found[key]["within"] = [
            {
                **{name: row[name] for name in ("attack", "budget", "queries")},
                "value": row[key],
                **{end: row.get(f"{key}_{end}") for end in ("low", "high")},
                "reason": row["reason"],
            }
            for row in rows
        ]
    return found


def _anchored(given: dict[str, Any]) -> dict[str, Any]:
    """Settings with absolute paths, so that a run can be resumed from any folder."""
    result = dict(given)
    for name in ("private", "holdout", "public", "classes"):
        if given[name] is not None:
            result[name] = str(Path(given[name]).absolute())
    for name in ("target", "evaluator"):
        if given[name] is not None:
            result[name] = absolute_spec(given[name])
    if isinstance(given["prior"], str) and Path(given["prior"]).exists():
        result["prior"] = str(Path(given["prior"]).absolute())
    return result
