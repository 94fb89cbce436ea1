"""What the parts of benchmarks/exposure.py share: audits, shadow models as files, and what is kept of them."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from inversight.core.console import Log, Quiet
from inversight.core.run import Run, read_manifest, read_object
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.models.networks import SavedClassifier
from inversight.models.recipes import Recipe, TrainingRecipe
from inversight.models.target import Target
from inversight.pipeline.adapt import guidance_metric
from inversight.pipeline.audit_shadows import recipe_of, shadow_job
from inversight.pipeline.execution import _Audit
from inversight.pipeline.exposure import log_distances
from inversight.pipeline.plan import Plan
from inversight.pipeline.shadows import (
    Block,
    Measured,
    ShadowAdaptation,
    ShadowAttack,
    ShadowJob,
    blocks_of,
    measure_model,
    run_block,
    train_block,
)
from inversight.pipeline.train import PUBLIC_NETWORK
from inversight.priors import Prior
from inversight.risk.exposure import Exposure, exposure, membership_auc
from inversight.settings import AuditSettings, resolve
from study import audit_arm

FDR = 0.1
PAIRS = 2
"""Pairs of a block, as audits have them."""
ADAPTED = ("vanilla", "natural-gradient")
"""Arms of the adaptation that the part `attacks` tries."""


@dataclass(frozen=True)
class SharedAdaptation(ShadowAdaptation):
    """Adapts to each model once for all attacks.

    known: adapted priors by the model's weights, with the processor seconds that they took. spared: the
    seconds of those that were found there.
    """

    known: dict[str, tuple[Prior, float]] = field(default_factory=dict)
    spared: list[float] = field(default_factory=list)

    def __call__(self, prior: Prior, target: Target, rng: torch.Generator) -> Prior:
        weights = (v.detach().cpu().contiguous() for v in target.module.state_dict().values())
        key = hashlib.sha256(b"".join(v.numpy().tobytes() for v in weights)).hexdigest()
        if key in self.known:
            self.spared.append(self.known[key][1])
        else:
            started = time.process_time()
            adapted = super().__call__(prior, target, rng)
            self.known[key] = adapted, time.process_time() - started
        return self.known[key][0]


class Parts(NamedTuple):
    """What an audit trained, and its attack."""

    target: Target
    evaluator: Target
    attack: ShadowAttack
    network: SavedClassifier | None


@dataclass(frozen=True)
class Base:
    """An audit without shadow models, and the job that shadow models of it would have.

    settings: of the audit. folder: its run. work: where shadow models go.
    """

    settings: AuditSettings
    folder: Path
    work: Path

    @classmethod
    def of(cls, given: dict[str, Any], work: Path) -> Base:
        """Run the audit, or find it again, in ``work``."""
        settings = resolve({**given, "shadows": 0})
        folder = work / "audit"
        if not (folder / "run.json").is_file() or not read_manifest(folder).get("finished"):
            audit_arm(settings, folder, folder)
        return cls(settings, folder, work)

    @cached_property
    def plan(self) -> Plan:
        return Plan.prepare(self.settings, Quiet())

    @cached_property
    def recipe(self) -> TrainingRecipe:
        """How the audited target was trained, for as many epochs, on every image."""
        epochs = read_object(self.folder / "stages" / "target" / "facts.json")["epochs"]
        found = recipe_of(self.plan, epochs)
        if not isinstance(found, TrainingRecipe):
            raise SystemExit(f"{self.folder}: its target was not trained by the audit")
        return found

    @cached_property
    def job(self) -> ShadowJob:
        return shadow_job(self.plan, self.recipe)

    @cached_property
    def parts(self) -> Parts:
        """What the audit trained, and its attack with the prior as it was trained."""
        with Run.open(self.folder) as run:
            audit = _Audit(self.plan, run, Log(Quiet(), []))
            settings = self.settings
            target, evaluator = audit.target(), audit.evaluator()
            network = None
            if self.plan.needs_public_network(exposure=True):
                public = self.plan.public_at_work
                network = audit.trained(PUBLIC_NETWORK, public, settings.public_training)
            prior = audit.prior(network)
            attack = audit.exposing.attack(prior, network, evaluator)
            return Parts(target, evaluator, attack, network)

    @property
    def attack(self) -> ShadowAttack:
        return self.parts.attack

    @cached_property
    def adaptations(self) -> dict[str, SharedAdaptation]:
        """By arm, to each shadow model of the audit's own recipe."""
        found: dict[str, SharedAdaptation] = {}
        for arm in ADAPTED:
            images = self.plan.public_for_prior.images
            metric = guidance_metric(
                arm, self.settings.guidance_embedding, size=images.shape[-1],
                public_network=self.parts.network,
            )  # fmt: skip
            found[arm] = SharedAdaptation(images, arm, self.settings.adaptation, metric)
        return found

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The audit's ledger, rows in the order of the job's private images."""
        ids = [name.partition("/")[2] for name in self.job.images.ids[: self.job.private]]
        return pd.read_parquet(self.folder / "samples.parquet").set_index("id").loc[ids]

    @cached_property
    def given(self) -> Measured:
        """The audit's target, attacked and measured like a shadow model."""
        file = self.work / "target.safetensors"
        if not file.is_file():
            measure_model(self.job, self.attack, self.parts.target, self.private).write(file)
        return Measured.load(file)

    @property
    def private(self) -> Tensor:
        """Which of the job's images are private, (N,) bool."""
        return self.job.is_private

    def measured(
        self, name: str, models: int, *, recipe: Recipe | None = None,
        attack: ShadowAttack | None = None, keep: bool = False,
    ) -> tuple[Measured, float]:  # fmt: skip
        """Return ``models`` shadow models and the processor seconds that they took; compute missing blocks.

        Models of the audit's own recipe are trained once for all attacks.

        Args:
            name: of their folder.
            recipe, attack: the audit's own if None.
            keep: the reconstructions.
        """
        job = replace(self.job, recipe=recipe or self.recipe, keep=keep)
        folder, blocks = self.work / name, blocks_of(models // 2, PAIRS)
        for block in blocks:
            if block.file(folder).is_file():
                continue
            if recipe is None:
                _train_once(job, block, self.work / "models", folder)
            one = attack or self.attack
            spared = getattr(one.adaptation, "spared", [])
            before, started = len(spared), time.process_time()
            if not run_block(job, one, block, folder):
                raise SystemExit(f"{folder}: another process works on {block.name}")
            # As if every attack adapted the prior itself.
            seconds = time.process_time() - started + sum(spared[before:])
            (folder / f"{block.name}.seconds").write_text(f"{seconds:.2f}\n")
            log(f"{self.work.name} {name} {block.name}: {seconds:.1f} s")
        places = [folder] if recipe else [folder, self.work / "models"]
        seconds = [
            float((place / f"{block.name}.seconds").read_text())
            for block in blocks
            for place in places
        ]
        return Measured.read(folder, models // 2, PAIRS), sum(seconds)

    def exposure(
        self, found: Measured, logs: Tensor | None = None, models: int | None = None
    ) -> Exposure:
        """Return exposure by the first ``models`` of ``found``; ``logs``: other log distances."""
        values = log_distances(found) if logs is None else logs
        images, count = self.job.images, models or len(values)
        return exposure(
            values[:count], found.membership[:count], images.labels, images.groups,
            twins=self.job.twins, private=self.private, fdr=FDR,
            rng=generator(self.job.seed, "exposure"),
        )  # fmt: skip


def _train_once(job: ShadowJob, block: Block, store: Path, folder: Path) -> None:
    """Train the block's models in ``store``, where they stay, and give ``folder`` a copy."""
    seconds = store / f"{block.name}.seconds"
    if not seconds.is_file():
        started = time.process_time()
        train_block(job, block, store)
        seconds.write_text(f"{time.process_time() - started:.2f}\n")
    if not block.models(folder).is_dir():
        shutil.copytree(block.models(store), block.models(folder))


def log(text: str) -> None:
    """Say what is done, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def figures_of(
    base: Base, found: Measured, models: int, logs: Tensor | None = None
) -> dict[str, Any]:
    """Return what is kept of the first ``models`` shadow models."""
    result = base.exposure(found, logs, models)
    exposed, mean, auc = (
        result.summary[key] for key in ("exposed", "exposure_mean", "exposure_auc")
    )
    loss = membership_auc(found.losses[:models], found.membership[:models], private=base.private)
    means = np.nanmean(result.differences[:, base.private].numpy(), axis=1)
    error = means.std(ddof=1) / len(means) ** 0.5
    effect = result.differences[:, base.private].numpy()
    halves = np.corrcoef(np.nanmean(effect[0::2], 0), np.nanmean(effect[1::2], 0))[0, 1]
    noise = np.nanvar(effect, axis=0, ddof=1).mean() / len(effect)
    between = max(0.0, np.nanvar(np.nanmean(effect, 0), ddof=1) - noise) ** 0.5
    part = replace(
        found, **{k: v[:models] for k, v in vars(found).items() if k not in ("rows", "pictures")}
    )
    inside, outside = part.accuracy()
    return rounded({
        "models": models,
        "flagged": exposed.extra.get("count", 0),
        "share": exposed.value,
        "images": exposed.extra.get("images"),
        "detectable_image": exposed.extra.get("detectable"),
        "spread": exposed.extra.get("spread"),
        "prior_freedom": exposed.extra.get("prior_freedom"),
        "mean": mean.value, "mean_low": mean.low, "mean_high": mean.high,
        "p_value": mean.extra.get("p_value"),
        "detectable": mean.extra.get("detectable"),
        "effect_over_error": float(means.mean() / error),
        "auc": auc.value, "auc_low": auc.low, "auc_high": auc.high,
        "between_images": between, "halves": halves,
        "membership_auc": loss.value,
        "membership_low": loss.low, "membership_high": loss.high,
        "accuracy_in": inside, "accuracy_out": outside,
    })  # fmt: skip


def rounded(value: Any) -> Any:
    """Return ``value`` with numbers to five digits."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.5g}")
    return value


def auc(high: Iterable[float], low: Iterable[float]) -> float:
    """Return how often a value of ``high`` is above one of ``low``; ties count half."""
    a, b = np.array(list(high))[:, None], np.array(list(low))[None, :]
    return float(((a > b) + 0.5 * (a == b)).mean())


def chosen(images: ImageSet, rows: int, seed: int, what: str) -> list[int]:
    """Return one random row of each class among the first ``rows``."""
    rng = generator(seed, what)
    found = []
    for label in images.labels[:rows].unique():
        own = (images.labels[:rows] == label).nonzero().squeeze(1)
        found.append(int(own[torch.randint(len(own), (), generator=rng)]))
    return found
