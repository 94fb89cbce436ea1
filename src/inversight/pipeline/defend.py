"""Train defended models, attack each of them again, and compare them with the undefended one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from inversight.core.cluster import Cluster, Files, Task, joined, pack, unpack
from inversight.core.console import Quiet, Reporter
from inversight.core.errors import ConfigError, InversightError, RunError
from inversight.core.progress import Progress
from inversight.core.run import (
    PRIVATE_NAMES,
    Run,
    atomic_file,
    atomic_folder,
    check_new_folder,
    is_disk_full,
    names_behind,
    provenance,
    read_manifest,
    write_json,
    write_text,
)
from inversight.core.seeding import generator
from inversight.core.threads import usable_threads, using_threads
from inversight.defences import Defence, DefenceData, Defended
from inversight.defences.outcomes import (
    NONE,
    TOLERANCE,
    ModelAudit,
    Outcome,
    model_audit,
    per_image,
    summarise,
)
from inversight.models.loaders.onnx import OnnxNetwork
from inversight.models.networks import FILE_NAME, load_classifier, save_classifier
from inversight.models.target import Access, Target, accuracy_on, target_of
from inversight.pipeline.attack import build_attack
from inversight.pipeline.audit_shadows import GIVEN_STAGE, SHADOWS_STAGE
from inversight.pipeline.defend_inputs import (
    GIVEN,
    Spec,
    build_defences,
    check_networks,
    choose_protected,
    read_finished_audit,
)
from inversight.pipeline.execution import copy_stage, execute
from inversight.pipeline.plan import Plan, check_unchanged, workers_of
from inversight.report.defences import render_defences
from inversight.report.reading import read_table
from inversight.settings import resolve

BLACK_BOX = "cma-es"
"""The attack to add where none of the audit's attacks is black box."""

_SHARED = ("evaluator", "public-network", "prior")
"""Stages of the audit that no defence changes."""


@dataclass(frozen=True)
class DefendResult:
    """Result of :func:`defend`: the content of defences.json and images.parquet in ``folder``."""

    folder: Path
    found: dict[str, Any]
    images: pd.DataFrame

    @property
    def report(self) -> Path:
        """Path of the report page."""
        return self.folder / "report.html"


def defend(
    run: Path | str,
    defences: Sequence[Spec],
    *,
    out: Path | str | None = None,
    seeds: int = 1,
    attacks: Sequence[Spec] = (),
    protect: float | None = None,
    tolerance: float = TOLERANCE,
    device: str | None = None,
    ray: str | None = None,
    reporter: Reporter | None = None,
) -> DefendResult:
    """Train defended models on the private images of a finished audit and audit each of them.

    Each defended model is attacked again, by the audit's attacks and by a black-box one if there is
    none among them: a defence that only hides gradients does not pass. Evaluator, public network and
    prior are those of the audit. Finished work in ``out`` is kept.

    Args:
        run: a finished audit with a holdout.
        defences: names or ``{"class": name or package.module:Class, setting: value}``.
        out: folder of the results; default ``run/defences``.
        seeds: number of trainings of each model, >= 1. The undefended model is trained again, too,
            because the audit's own was used to choose the images to protect. Intervals need 2.
        attacks: attacks to run besides the audit's own.
        protect: fraction in (0, 1) of the private images that sample-level defences protect, the
            nearest ones first; None: the flagged ones, or a tenth if none is flagged.
        tolerance: largest loss of holdout accuracy of a recommended defence, in [0, 1).
        device: None: the audit's.
        ray: Ray cluster on which the models are trained and audited, see
            :func:`inversight.core.cluster.joined`. The private images are sent to it.

    Raises:
        InputError: an argument is wrong, or the audit's inputs have changed; nothing was written.
        StageError: the undefended model could not be trained or audited. A defence that fails is
            reported, and the others continue.
    """
    reporter, run = reporter or Quiet(), Path(run)
    if seeds < 1:
        raise ConfigError(f"--seeds: expected 1 or more, found {seeds}")
    if protect is not None and not 0.0 < protect < 1.0:
        raise ConfigError(f"--protect: expected a share between 0 and 1, found {protect}")
    if not 0.0 <= tolerance < 1.0:
        raise ConfigError(f"--accuracy-loss: expected 0 or more and below 1, found {tolerance}")
    built, settings = build_defences(defences)
    manifest = read_finished_audit(run)
    given = {**manifest["given"], "fail_on": None, "budget": (), "shadows": 0, "recipe": None}
    specs = [*given["attack"], *attacks]
    if all(build_attack(spec)[1].access is Access.WHITE_BOX for spec in specs):
        specs.append(BLACK_BOX)
    given["attack"] = specs
    if device is not None:
        given["device"] = device
    plan = Plan.prepare(resolve(given), reporter)
    check_unchanged(plan.manifest(), manifest, run)
    if ray is not None and _is_bound(plan):
        raise ConfigError(
            "--ray: an ONNX file or a service cannot be sent to a cluster; leave it out"
        )
    # Of the models that are trained here, attackers get no more than of the audited one.
    plan = replace(plan, settings=replace(plan.settings, access=plan.access.value))
    check_networks(built, plan, reporter)
    samples = read_table(run, "samples.parquet", ("id", "nearest_distance"))
    protected, rule = choose_protected(samples, protect, plan.settings.fdr)
    folder = Path(out) if out is not None else run / "defences"
    if not (folder / "runs").is_dir():
        check_new_folder(folder, needed_bytes=20_000_000 * (1 + len(built)) * seeds)
    # The audit's own seed is not used: images that were chosen because they came out nearest come out
    # less near in any repetition, with or without a defence.
    first = plan.settings.seed + 1
    workers, threads = workers_of(plan)
    with (
        using_threads(plan.settings.threads or usable_threads()),
        joined(ray, workers=workers, threads=threads, device=plan.device) as cluster,
    ):
        return _Comparison(
            run=run, folder=folder, plan=plan, defences=built, settings=settings,
            protected=tuple(protected), rule=rule, seeds=tuple(range(first, first + seeds)),
            tolerance=tolerance, reporter=reporter, cluster=cluster,
            stage_threads=read_manifest(run).get("stage_threads", {}),
        ).execute()  # fmt: skip


def _is_bound(plan: Plan) -> bool:
    """Return whether the given target is one that this process alone can ask."""
    target = plan.inputs.target
    layers = () if target is None else target.module.modules()
    return plan.inputs.endpoint is not None or any(isinstance(m, OnnxNetwork) for m in layers)


@dataclass(frozen=True)
class _Comparison:
    """A checked comparison, ready to run. protected: ids as the run's tables name the images."""

    run: Path
    folder: Path
    plan: Plan
    defences: Mapping[str, Defence]
    settings: Mapping[str, Any]
    protected: tuple[str, ...]
    rule: str
    seeds: tuple[int, ...]
    tolerance: float
    reporter: Reporter
    cluster: Cluster | None = None
    stage_threads: Mapping[str, int] = field(default_factory=dict)
    """Of the audit, as its manifest has them."""

    @property
    def names(self) -> list[str]:
        """The models to compare, the undefended one first."""
        given = [] if self.plan.inputs.target is None else [GIVEN]
        return [NONE, *given, *self.defences]

    def execute(self) -> DefendResult:
        """Train and audit the models that are missing, then write the results."""
        models = [(name, seed) for seed in self.seeds for name in self.names]
        self.reporter.say(self._announcement(len(models)))
        progress = self.reporter.stage("defences")
        audits: dict[str, dict[int, ModelAudit]] = {name: {} for name in self.names}
        failed: dict[str, str] = {}
        errors = {} if self.cluster is None else self._on_cluster(models, self.cluster, progress)
        for done, (name, seed) in enumerate(models):
            progress(done, len(models), f"{name}, seed {seed}")
            if name in failed:
                continue
            try:
                if (name, seed) in errors:
                    raise errors[name, seed]
                audits[name][seed] = self._audit(name, seed)
            except RunError:
                raise  # another process uses the folder: the other models would fail alike
            except Exception as error:
                if name in (NONE, GIVEN) or is_disk_full(error):
                    raise
                text = " ".join(str(error).split()) or "no message"
                known = isinstance(error, InversightError)
                failed[name] = text if known else f"{type(error).__name__}: {text}"
                self.reporter.warn(f"{name} failed and is left out: {failed[name]}")
        progress(len(models), len(models), "")
        return self._write(audits, failed)

    def _on_cluster(
        self, models: Sequence[tuple[str, int]], cluster: Cluster, progress: Progress
    ) -> dict[tuple[str, int], Exception]:
        """Train and audit on the cluster what was not begun, and return the errors of what failed."""
        missing = [one for one in models if not self._folder(*one).is_dir()]
        for name, seed in models:
            if name == NONE and (name, seed) not in missing:
                self._audit(name, seed)  # which the others of the seed begin with
        plan = replace(self.plan, device=cluster.device)
        sent = cluster.put(replace(self, plan=plan, cluster=None, reporter=Quiet()))
        of_run = {self.run / "stages" / stage: Path("run", "stages", stage) for stage in _SHARED}
        shared = cluster.put_files(_moved(of_run))
        hidden = self.run / PRIVATE_NAMES
        tasks: dict[tuple[str, int], Task] = {}
        for name, seed in missing:
            first = tasks.get((NONE, seed))
            if first is None and name != NONE:
                first = cluster.put_files(_moved({self._folder(NONE, seed): _inside(NONE, seed)}))
            files = (shared,) if first is None else (shared, first)
            if hidden.is_file():
                files = (*files, {f"run/{PRIVATE_NAMES}": hidden.read_bytes()})
            tasks[name, seed] = cluster.submit(_audit_in, sent, name, seed, files=files)
        errors = {}
        for done, ((name, seed), found) in enumerate(cluster.results(tasks)):
            progress(done, len(models), f"{len(tasks) - done} models on the cluster")
            if isinstance(found, Exception):
                errors[name, seed] = found
                continue
            start = f"{_inside(name, seed).as_posix()}/"
            with atomic_folder(self._folder(name, seed)) as partial:
                unpack({path.removeprefix(start): c for path, c in found.items()}, partial)
        return errors

    def _announcement(self, models: int) -> str:
        before = {s["name"]: s["seconds"] for s in read_manifest(self.run)["stages"]}
        others = (*_SHARED, SHADOWS_STAGE, GIVEN_STAGE)
        each = sum(seconds for stage, seconds in before.items() if stage not in others)
        beside = ", ".join(name for name in self.names if name not in self.defences)
        images = len(self.plan.inputs.private)
        return (
            f"inversight defend {self.run}, seeds {', '.join(map(str, self.seeds))}\n"
            f"  defences   {', '.join(self.defences)}; compared with {beside}\n"
            f"  protected  {len(self.protected)} of {images} private images: {self.rule}\n"
            f"  attacks    {', '.join(self.plan.attacks)}, each run again on every model\n"
            f"  results    {self.folder}\n"
            f"  estimate   {models} models, at most about {max(1, round(models * each / 60))} minutes "
            "by the audit's own times; if stopped, the same command continues"
        )

    def _audit(self, name: str, seed: int) -> ModelAudit:
        """Train and audit one model, or read the audit that is there."""
        folder = self._folder(name, seed)
        plan = replace(self.plan, settings=replace(self.plan.settings, seed=seed, shadows=0))
        if name != GIVEN:
            plan = replace(plan, inputs=replace(plan.inputs, target=None))
        names = "\n".join(sorted(self.protected))
        manifest = self.plan.manifest()
        facts = {
            "part_of": "defend",
            "stage_threads": dict(self.stage_threads),
            "defence": {"name": name, **self.settings.get(name, {})},
            "compared": {
                "attacks": json.loads(json.dumps(manifest["given"]["attack"], default=str)),
                "protected": hashlib.sha256(names.encode()).hexdigest()[:16],
                "inputs": {k: v["fingerprint"] for k, v in manifest["inputs"].items()},
            },
        }
        if (folder / "run.json").is_file():
            inner = Run.open(folder)
        else:
            inner = Run.create(folder, {**plan.manifest(), **facts})
        differs = {
            "defence": f"settings of {name}",
            "compared": "attacks or protected images (--protect), or another run",
        }
        with inner:
            for key, what in differs.items():
                if inner.manifest.get(key) != facts[key]:
                    raise RunError(
                        f"{folder}: was made with other {what}; give the same again to continue, or "
                        "name another --out"
                    )
            return self._execute(inner, plan, name, seed)

    def _execute(self, inner: Run, plan: Plan, name: str, seed: int) -> ModelAudit:
        self._copy_stages(inner, name, seed)
        facts: Mapping[str, Any] = {}
        if name in self.defences:
            defended = self._defended(inner, name, seed)
            facts = defended.facts
            plan = replace(plan, inputs=replace(plan.inputs, target=defended.target))
        result = execute(plan, inner, self.reporter)
        if "accuracies" not in inner.manifest:
            target = (plan.inputs.target or _trained_target(inner.path)).to(plan.device)
            if plan.inputs.holdout is None:
                raise ValueError("a comparison needs a holdout")
            holdout = accuracy_on(target, plan.inputs.holdout)
            private = inner.manifest["target"]["private_accuracy"]
            inner.record(accuracies={"holdout_accuracy": holdout, "private_accuracy": private})
        own = [s["seconds"] for s in inner.manifest["stages"] if s["name"] not in _SHARED]
        return model_audit(
            result.metrics, result.samples, pd.read_parquet(inner.path / "samples_by_set.parquet"),
            protected=self.protected,
            access={name: str(attack.access) for name, attack in plan.attacks.items()},
            accuracies=inner.manifest["accuracies"], minutes=sum(own) / 60, facts=facts,
        )  # fmt: skip

    def _folder(self, name: str, seed: int) -> Path:
        return self.folder / "runs" / f"{name}-{seed}"

    def _copy_stages(self, inner: Run, name: str, seed: int) -> None:
        """Copy the stages that this model has in common with the audit or the undefended model."""
        sources = dict.fromkeys(_SHARED, self.run)
        undefended = self._folder(NONE, seed)
        changes_outputs = name in self.defences and self.defences[name].level == "output"
        # An adaptation without guidance does not depend on the target; white-box attacks and a guided
        # adaptation do not depend on changed outputs.
        if changes_outputs or (self.plan.settings.arm == "vanilla" and name != NONE):
            sources["adaptation"] = undefended
        if changes_outputs:
            attacks = self.plan.attacks.items()
            white = [f"attack-{n}" for n, a in attacks if a.access is Access.WHITE_BOX]
            sources |= dict.fromkeys(white, undefended)
        for stage, source in sources.items():
            copy_stage(source, inner, stage)
        names = self.run / PRIVATE_NAMES
        if names.is_file() and not (inner.path / names.name).is_file():
            # The same key, so that an image has the same hash in every table.
            shutil.copyfile(names, inner.path / names.name)

    def _defended(self, inner: Run, name: str, seed: int) -> Defended:
        """Return the defended model, which is trained unless it is there."""
        trained: list[Defended] = []

        def fill(folder: Path) -> None:
            trained.append(defended := self._fit(name, seed))
            if defended.classifier is not None:
                save_classifier(defended.classifier, folder / FILE_NAME)
            write_json(folder / "facts.json", dict(defended.facts))

        folder = inner.stage("defended", fill)
        if trained:
            return trained[0]
        if (folder / FILE_NAME).is_file():
            saved = load_classifier(folder)
            facts = json.loads((folder / "facts.json").read_text())
            return Defended(target_of(saved, f"defended by {name}"), saved, facts)
        # A model that cannot be saved is trained again, from the same seed.
        return self._fit(name, seed)

    def _fit(self, name: str, seed: int) -> Defended:
        plan, private = self.plan, self.plan.inputs.private
        real = names_behind(self.run)
        chosen = {real.get(one, one) for one in self.protected}
        data = DefenceData(
            private, torch.tensor([one in chosen for one in private.ids]), plan.public_at_work,
            plan.shape, plan.settings.target_training,
        )  # fmt: skip
        return self.defences[name].fit(
            data,
            _trained_target(self._folder(NONE, seed)).to(plan.device),
            # The seed of the undefended training, so that both start from the same weights.
            rng=generator(seed, "target"),
            progress=self.reporter.stage(name),
            device=plan.device,
        )

    def _write(
        self, audits: Mapping[str, Mapping[int, ModelAudit]], failed: Mapping[str, str]
    ) -> DefendResult:
        plan = self.plan
        outcomes = [
            Outcome(
                name, self.defences[name].level if name in self.defences else "none",
                self._description(name), {} if name in failed else audits[name], failed.get(name),
            )
            for name in self.names
        ]  # fmt: skip
        warnings = []
        if plan.inputs.target is not None:
            warnings.append(
                "The audited model was given, and how it was trained is not known. Defences are "
                "compared with a small classifier trained on the same images ('none'), not with it."
            )
        value = {
            **provenance(),
            "run": self.run.absolute().name,
            "embedding": plan.settings.embedding,
            "fdr": plan.settings.fdr,
            "seeds": list(self.seeds),
            "attacks": {name: str(attack.access) for name, attack in plan.attacks.items()},
            "protected": {
                "count": len(self.protected),
                "of": len(plan.inputs.private),
                "rule": self.rule,
            },
            "accuracy_loss": self.tolerance,
            "settings": dict(self.settings),
            "warnings": warnings,
            **summarise(outcomes, tolerance=self.tolerance),
        }
        table = per_image(outcomes, self.protected)
        write_json(self.folder / "defences.json", value)
        with atomic_file(self.folder / "images.parquet") as partial:
            table.to_parquet(partial, index=False)
        write_text(self.folder / "report.html", render_defences(value, table))
        return DefendResult(self.folder, value, table)

    def _description(self, name: str) -> str:
        if name not in self.defences:
            return "the audited model" if name == GIVEN else "the same training without a defence"
        return (type(self.defences[name]).__doc__ or "").strip().partition("\n")[0]


def _inside(name: str, seed: int) -> Path:
    """Return the place of a model's run in the folder of a task."""
    return Path("out", "runs", f"{name}-{seed}")


def _moved(folders: Mapping[Path, Path]) -> Files:
    """Return the files of folders, each at the place where a task looks for it."""
    return {
        (place / path).as_posix(): content
        for folder, place in folders.items()
        if folder.is_dir()
        for path, content in pack(folder).items()
    }


def _audit_in(comparison: _Comparison, name: str, seed: int, folder: Path) -> None:
    """Train and audit one model in the folder of a task, and leave nothing else there."""
    replace(comparison, run=folder / "run", folder=folder / "out")._audit(name, seed)
    shutil.rmtree(folder / "run")
    for other in (folder / "out" / "runs").iterdir():
        if other != folder / _inside(name, seed):
            shutil.rmtree(other)


def _trained_target(folder: Path) -> Target:
    """Return the target that the audit in ``folder`` trained."""
    return target_of(load_classifier(folder / "stages" / "target"), "trained by this audit")
