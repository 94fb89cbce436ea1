"""Targets and priors that the attack benchmarks use, and the measures of their reconstructions."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base_audits import base_audit, base_settings
from inversight.adaptation import adapt
from inversight.attacks import Attack, Reconstructions, control, run_attack
from inversight.core.config import build
from inversight.core.console import Quiet
from inversight.core.imaging import to_uint8
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.embeddings import named_embedding
from inversight.embeddings.base import Embedding
from inversight.models.networks import load_classifier
from inversight.models.target import Target, target_of
from inversight.pipeline.evaluation import evaluate
from inversight.pipeline.metrics import Evaluation
from inversight.pipeline.plan import Plan
from inversight.priors import StylePrior
from inversight.settings import ATTACKS, Adaptation, AuditSettings, resolve
from study import BASE, SMALL, audit_arm
from study_data import DATASETS, TRUNCATED

MEASURES = (
    "accuracy_top1", "target_top1", "knn_distance", "ddcs_best", "covered", "coverage", "frechet",
    "leakage_gap",
)  # fmt: skip
STEPS = {"digits": 300, "faces-32": 250, "vehicles-same": 500}
"""Steps of the adaptation; the arm vanilla takes as many without guidance."""
HARDLY: dict[str, Any] = {
    "shadows": 0,
    "arm": BASE,
    "prior": {"steps": 40},
    "adaptation": {"steps": 0},
    "target_training": {"epochs": 8},
    "evaluator_training": {"epochs": 8},
    "public_training": {"epochs": 2},
    "attack": [{"class": "plug-and-play", "pool": 40, "candidates": 2, "keep": 1, "steps": 1}],
}
"""Settings of an audit that is over soon and has networks of the usual size, which decide the speed."""
AS_PUBLISHED = {
    "plug-and-play": TRUNCATED, "lokt": {"white_box": TRUNCATED}, "ppdg": {"around": TRUNCATED},
}  # fmt: skip
"""Settings of attacks as in their papers, where the presets differ; kept results use them."""


@dataclass(frozen=True)
class AttackProblem:
    """A target, its images, and a prior for each arm of the adaptation."""

    name: str
    seed: int
    settings: AuditSettings
    given: dict[str, Any]
    folder: Path
    private: ImageSet
    holdout: ImageSet | None
    public: ImageSet
    small: bool = False
    """Whether Plug & Play has the budget of the study's small version."""

    @classmethod
    def load(cls, name: str, seed: int, *, data: Path, work: Path, small: bool) -> AttackProblem:
        """Return the problem of a data set and seed; train what is missing."""
        folder = base_audit(name, seed, data=data, work=work, small=small)
        settings = base_settings(name, seed, data=data, work=work, small=small)
        return replace(cls.from_run(name, seed, settings, folder), small=small)

    @classmethod
    def hardly_trained(cls, name: str, seed: int, *, data: Path, work: Path) -> AttackProblem:
        """Return the problem of a data set and seed for measurements of time alone."""
        settings = resolve({**DATASETS[name].given(seed, data, work), **HARDLY, "seed": seed})
        folder = work / f"{name}-{seed}"
        audit_arm(settings, folder, folder)
        return cls.from_run(name, seed, settings, folder)

    @classmethod
    def from_run(cls, name: str, seed: int, settings: AuditSettings, folder: Path) -> AttackProblem:
        """Return the problem that the audit in ``folder``, run with ``settings``, attacked."""
        plan = Plan.prepare(settings, Quiet())
        given = json.loads((folder / "run.json").read_text())["given"]
        inputs = plan.inputs
        return cls(
            name, seed, settings, given, folder, inputs.private, inputs.holdout,
            plan.public_for_prior,
        )  # fmt: skip

    def first_classes(self, classes: int) -> AttackProblem:
        """Return the same problem with the first ``classes`` classes only."""

        def some(images: ImageSet) -> ImageSet:
            return images.select((images.labels < classes).nonzero().flatten())

        held = None if self.holdout is None else some(self.holdout)
        return replace(self, private=some(self.private), holdout=held)

    @property
    def labels(self) -> Tensor:
        return self.private.labels.unique(sorted=True)

    @cached_property
    def target(self) -> Target:
        return target_of(load_classifier(self.folder / "stages" / "target"), "the target")

    @cached_property
    def evaluator(self) -> Target:
        return target_of(load_classifier(self.folder / "stages" / "evaluator"), "the evaluator")

    @cached_property
    def distance(self) -> Embedding:
        return self._embedding("distance")

    @cached_property
    def features(self) -> Embedding:
        return self._embedding("features")

    def _embedding(self, use: Any) -> Embedding:
        return named_embedding(
            "public", use=use, role="--embedding", size=self.private.size,
            public_network=load_classifier(self.folder / "stages" / "public-network"),
            evaluator=None,
        )  # fmt: skip

    @cached_property
    def trained(self) -> StylePrior:
        """The prior before any adaptation."""
        return StylePrior.load(self.folder / "stages" / "prior" / "prior.safetensors")

    @cached_property
    def metric(self) -> Embedding:
        """The embedding that preconditions the natural gradient."""
        size = self.trained.image_shape[1]
        return named_embedding(
            "public", use="distance", role="--guidance-embedding", size=size,
            public_network=load_classifier(self.folder / "stages" / "public-network"),
            evaluator=None, working_size=max(64, size),
        )  # fmt: skip

    def prior(
        self, arm: str, steps: int, *, variant: str = "", start: StylePrior | None = None,
        metric: Embedding | None = None, **changed: Any,
    ) -> StylePrior:  # fmt: skip
        """Return the prior after ``steps`` of an arm; adapt it if it is missing.

        ``variant`` names what else differs: ``start``, another prior to adapt, and ``metric``, another
        embedding than :attr:`metric`. ``changed``: settings of the adaptation other than the defaults.
        """
        named = [variant] if variant else []
        name = "-".join([arm, str(steps), *named, *(f"{k}={v}" for k, v in changed.items())])
        file = self.folder.parent / "priors" / f"{name}.safetensors"
        if not file.is_file():
            file.parent.mkdir(exist_ok=True)
            prior = start or self.trained
            adapt(
                prior,
                self.target,
                self.public.images,
                arm=arm,
                adaptation=Adaptation(
                    steps=steps, pseudo_labels_mirror=self.name != "digits", **changed
                ),
                training=prior.training,
                metric=metric or self.metric,
                rng=generator(self.seed, "adaptation"),
            ).save(file.with_suffix(".partial"))
            file.with_suffix(".partial").replace(file)
        return StylePrior.load(file)

    def attack(self, name: str, **changed: Any) -> Attack:
        """Return the attack as `inversight audit --preset quick` runs it here, except for AS_PUBLISHED."""
        budget = SMALL["attack"][0] if self.small and name == "plug-and-play" else {}
        spec = {"class": name, **budget, **AS_PUBLISHED.get(name, {}), **changed}
        found = resolve({**self.given, "attack": [spec]}).attack[0]
        attack: Attack = build(found, ATTACKS, role="--attack")
        return attack

    def unguided(self, prior: StylePrior, keep: int) -> Reconstructions:
        """Return ``keep`` samples of the prior for each class, assigned at random."""
        labels = self.labels.repeat_interleave(keep)
        rng = generator(self.seed, "control")
        return control(prior, labels, rng=rng, truncation=TRUNCATED["truncation"])

    def run(self, attack: Attack, prior: StylePrior) -> tuple[Reconstructions, float]:
        """Return the reconstructions of all classes, and the seconds that the attack took."""
        started = time.perf_counter()
        reconstructions = run_attack(
            attack, self.target, prior, self.labels, rng=generator(self.seed, "attack")
        )
        return reconstructions, time.perf_counter() - started

    def scored(
        self, reconstructions: Reconstructions
    ) -> tuple[dict[str, float | None], Evaluation]:
        """Return the values of MEASURES, and the whole evaluation."""
        names = tuple(f"{number:06d}" for number in range(len(reconstructions)))
        pixels, labels = to_uint8(reconstructions.images), reconstructions.labels
        images = ImageSet(pixels, labels, names, self.private.classes, names)
        found = evaluate(
            self.private, {"attack": images}, distance=self.distance, features=self.features,
            evaluator=self.evaluator, holdout=self.holdout, memory=2**30, seed=self.seed,
        )  # fmt: skip
        with torch.no_grad():
            own = torch.cat([self.target(x).argmax(1) for x in reconstructions.images.split(200)])
        values: dict[str, Any] = {
            name: found.metrics[name]["value"] for name in MEASURES if name in found.metrics
        }
        values["target_top1"] = float((own == labels).float().mean())
        return values, found
