"""The defence loop: train defended models, attack each of them anew, compare with the undefended one."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from inversight.core.config import build, to_mapping
from inversight.core.console import Quiet, Reporter
from inversight.core.errors import ConfigError, InputError, InversightError, RunError
from inversight.core.progress import Progress
from inversight.core.run import (
    Run,
    atomic_folder,
    check_new_folder,
    is_disk_full,
    read_manifest,
    write_json,
    write_text,
)
from inversight.core.seeding import generator
from inversight.defences import Defence, DefenceData, Defended
from inversight.defences.outcomes import (
    NONE,
    TOLERANCE,
    Audited,
    Outcome,
    audited,
    per_image,
    summarise,
)
from inversight.models.networks import FILE_NAME, load_classifier, save_classifier
from inversight.models.target import Access, Target, accuracy_on, target_of
from inversight.pipeline import Plan, check_unchanged, execute
from inversight.report.defences import render_defences
from inversight.report.reading import read_mapping, read_table
from inversight.settings import ATTACKS, DEFENCES, resolve

GIVEN = "given"
"""The model that was audited, where the user brought it: beside the undefended one trained here."""

SHARE = 0.1
"""Share of the private images that is protected where the run flags none."""

BLACK_BOX = "cma-es"
"""The attack that is added to a run's where none of them is black box."""

_SHARED = ("evaluator", "public-network", "prior")
"""Stages of the run that no defence changes."""


@dataclass(frozen=True)
class DefendResult:
    """What a comparison of defences leaves in ``folder``: defences.json and images.parquet, read."""

    folder: Path
    found: dict[str, Any]
    images: pd.DataFrame

    @property
    def report(self) -> Path:
        """The page's path."""
        return self.folder / "report.html"


def defend(
    run: Path | str,
    defences: Sequence[str | dict[str, Any]],
    *,
    out: Path | str | None = None,
    seeds: int = 1,
    attacks: Sequence[str | dict[str, Any]] = (),
    protect: float | None = None,
    tolerance: float = TOLERANCE,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> DefendResult:
    """Train defended models on the private images of a finished audit and audit each of them.

    Every defended model is attacked anew, by the audit's attacks and, if none of those is black box,
    by one that is: a defence that only hides gradients does not pass. Evaluator, public network and
    prior are the run's own. What is finished in ``out`` is not done again.

    Args:
        run: a finished audit with a holdout.
        defences: names or ``{"class": name or package.module:Class, setting: value}``.
        out: folder of the results; default ``run/defences``.
        seeds: trainings of each model, >= 1, the undefended one too, which is trained anew because
            the run's own was used to choose what to protect. From 2 on there are intervals.
        attacks: attacks to run beside the audit's own.
        protect: share in (0, 1) of the private images that sample-level defences protect, the most
            exposed first; None: those that the run flags, or a tenth where it flags none.
        tolerance: loss of holdout accuracy that a recommended defence may cost, in [0, 1).
        device: None: the run's own.

    Raises:
        InputError: something given is wrong, or the run's inputs have changed; nothing was written.
        StageError: the undefended model could not be trained or audited. Defences that fail are
            reported, and the others go on.
    """
    reporter = reporter or Quiet()
    comparison = _Comparison.prepare(
        Path(run), defences, None if out is None else Path(out), seeds, attacks, protect,
        tolerance, device, reporter,
    )  # fmt: skip
    return comparison.execute()


@dataclass(frozen=True)
class _Comparison:
    """A checked comparison, ready to run."""

    run: Path
    folder: Path
    plan: Plan
    defences: Mapping[str, Defence]
    settings: Mapping[str, Any]
    samples: pd.DataFrame
    protected: tuple[str, ...]
    rule: str
    protected_rows: torch.Tensor
    seeds: tuple[int, ...]
    tolerance: float
    reporter: Reporter

    @classmethod
    def prepare(
        cls,
        run: Path,
        specs: Sequence[str | dict[str, Any]],
        out: Path | None,
        seeds: int,
        attacks: Sequence[str | dict[str, Any]],
        protect: float | None,
        tolerance: float,
        device: str | None,
        reporter: Reporter,
    ) -> _Comparison:
        if seeds < 1:
            raise ConfigError(f"--seeds: expected 1 or more, found {seeds}")
        if protect is not None and not 0.0 < protect < 1.0:
            raise ConfigError(f"--protect: expected a share between 0 and 1, found {protect}")
        if not 0.0 <= tolerance < 1.0:
            raise ConfigError(f"--accuracy-loss: expected 0 or more and below 1, found {tolerance}")
        defences, settings = _built(specs)
        manifest = read_manifest(run)
        if not manifest.get("finished"):
            raise RunError(f"{run}: the audit is not finished; go on with --resume {run} first")
        if "given" not in manifest:
            raise RunError(
                f"{run}: is not an audit's run (it was scored from folders, and there is no model to "
                "defend)"
            )
        if "holdout" not in manifest["inputs"]:
            raise InputError(
                f"{run}: has no holdout, and what a defence costs can be measured only on images "
                "that no model saw; audit with --holdout first"
            )
        given = {**manifest["given"], "fail_on": None, "budget": ()}
        if device is not None:
            given["device"] = device
        given["attack"] = _attacks(given["attack"], attacks)
        plan = Plan.prepare(resolve(given), reporter)
        check_unchanged(plan, manifest, run)
        samples = read_table(run, "samples.parquet", ("id", "nearest_distance"))
        names, rule = _protected(samples, protect, plan.settings.fdr)
        real = _real_names(run)
        row = {name: i for i, name in enumerate(plan.inputs.private.ids)}
        protected_rows = torch.zeros(len(row), dtype=torch.bool)
        protected_rows[[row[real.get(name, name)] for name in names]] = True
        folder = out or run / "defences"
        if not (folder / "runs").is_dir():
            check_new_folder(folder, needed_bytes=20_000_000 * (1 + len(defences)) * seeds)
        # The run's own seed takes no part: images that were chosen because they came out most exposed
        # come out less so whenever anything is repeated, with or without a defence.
        first = plan.settings.seed + 1
        return cls(
            run, folder, plan, defences, settings, samples, tuple(names), rule, protected_rows,
            tuple(range(first, first + seeds)), tolerance, reporter,
        )  # fmt: skip

    def execute(self) -> DefendResult:
        """Train and audit what is missing, then write the results."""
        names = [NONE, *([GIVEN] if self.plan.inputs.target is not None else []), *self.defences]
        total = len(names) * len(self.seeds)
        self.reporter.say(self._announcement(names, total))
        progress = self.reporter.stage("defences")
        found: dict[str, dict[int, Audited]] = {name: {} for name in names}
        failed: dict[str, str] = {}
        done = 0
        for seed in self.seeds:
            for name in names:
                progress(done, total, f"{name}, seed {seed}")
                if name not in failed:
                    self._try(name, seed, found[name], failed)
                done += 1
        progress(total, total, "")
        return self._write(names, found, failed)

    def _try(self, name: str, seed: int, found: dict[int, Audited], failed: dict[str, str]) -> None:
        """Audit one model; a defence that fails is put down as such, and the others go on."""
        try:
            found[seed] = self._audited(name, seed)
        except RunError:
            raise  # another process holds the folder: the others would fail alike
        except Exception as error:
            if name in (NONE, GIVEN) or is_disk_full(error):
                raise
            text = " ".join(str(error).split()) or "no message"
            known = isinstance(error, InversightError)
            failed[name] = text if known else f"{type(error).__name__}: {text}"
            self.reporter.warn(f"{name} failed and is left out: {failed[name]}")

    def _announcement(self, names: Sequence[str], total: int) -> str:
        before = {s["name"]: s["seconds"] for s in read_manifest(self.run)["stages"]}
        each = sum(seconds for stage, seconds in before.items() if stage not in _SHARED)
        return "\n".join(
            [
                f"inversight defend {self.run}, seeds {', '.join(map(str, self.seeds))}",
                f"  defences   {', '.join(self.defences)}; beside {', '.join(names[: -len(self.defences)])}",
                f"  protected  {len(self.protected)} of {len(self.samples)} private images: {self.rule}",
                f"  attacks    {', '.join(self.plan.attacks)}, each run again on every model",
                f"  results    {self.folder}",
                f"  estimate   {total} models, at most about {max(1, round(total * each / 60))} minutes by "
                "the run's own times; stopped, the same command goes on",
            ]
        )

    def _audited(self, name: str, seed: int) -> Audited:
        folder = self.folder / "runs" / f"{name}-{seed}"
        plan = replace(self.plan, settings=replace(self.plan.settings, seed=seed))
        if name != GIVEN:
            plan = replace(plan, inputs=replace(plan.inputs, target=None))
        facts = {
            "part_of": "defend",
            "defence": {"name": name, **self.settings.get(name, {})},
            "compared": self._compared(),
        }
        if (folder / "run.json").is_file():
            inner = Run.open(folder)
        else:
            inner = Run.create(folder, {**plan.manifest(), **facts})
        try:
            before = inner.manifest.get("defence")
            if before != facts["defence"]:
                raise RunError(
                    f"{folder}: was made with other settings of {name} ({before}); name another --out"
                )
            if inner.manifest.get("compared") != facts["compared"]:
                raise RunError(
                    f"{folder}: was made with other attacks, other protected images (--protect) or "
                    "another run; give the same again to go on, or name another --out"
                )
            return self._execute(inner, plan, name, seed)
        finally:
            inner.close()

    def _compared(self) -> dict[str, Any]:
        """What all models of a comparison must have in common."""
        names = "\n".join(sorted(self.protected))
        return {
            "attacks": json.loads(json.dumps(to_mapping(self.plan.settings.attack), default=str)),
            "protected": hashlib.sha256(names.encode()).hexdigest()[:16],
            "inputs": {k: v["fingerprint"] for k, v in self.plan.manifest()["inputs"].items()},
        }

    def _execute(self, inner: Run, plan: Plan, name: str, seed: int) -> Audited:
        self._copy_stages(inner, name, seed)
        told: Mapping[str, Any] = {}
        if name in self.defences:
            made = self._defended(inner, name, seed)
            told = made.facts
            plan = replace(plan, inputs=replace(plan.inputs, target=made.target))
        result = execute(plan, inner, self.reporter)
        if "accuracies" not in inner.manifest:
            target = plan.inputs.target or self._undefended(inner.path)
            target = target.to(plan.device)
            sets = (("holdout", plan.inputs.holdout), ("private", plan.inputs.private))
            inner.record(
                accuracies={
                    f"{role}_accuracy": accuracy_on(target, images)
                    for role, images in sets
                    if images is not None
                }
            )
        return audited(
            result.metrics,
            result.samples,
            pd.read_parquet(inner.path / "samples_by_set.parquet"),
            protected=self.protected,
            access={n: str(a.access) for n, a in plan.attacks.items()},
            accuracies=inner.manifest["accuracies"],
            minutes=sum(s["seconds"] for s in inner.manifest["stages"] if s["name"] not in _SHARED)
            / 60,
            facts=told,
        )

    def _copy_stages(self, inner: Run, name: str, seed: int) -> None:
        """Take over what is the same: the run's evaluator, public network and prior; of a model that
        differs in its answers alone what white box found.
        """
        sources = dict.fromkeys(_SHARED, self.run)
        if self.plan.settings.arm == "vanilla" and name != NONE:
            # An adaptation that is not guided is the same whatever the target is.
            sources["adaptation"] = self.folder / "runs" / f"{NONE}-{seed}"
        if name in self.defences and self.defences[name].level == "output":
            white = [n for n, a in self.plan.attacks.items() if a.access is Access.WHITE_BOX]
            undefended = self.folder / "runs" / f"{NONE}-{seed}"
            sources |= dict.fromkeys(
                ("adaptation", *(f"attack-{attack}" for attack in white)), undefended
            )
        for stage, source in sources.items():
            copy = inner.path / "stages" / stage
            if (source / "stages" / stage).is_dir() and not copy.is_dir():
                with atomic_folder(copy) as folder:
                    shutil.copytree(source / "stages" / stage, folder, dirs_exist_ok=True)
        names = self.run / "private-ids.json"
        if names.is_file() and not (inner.path / names.name).is_file():
            # The same key, so that an image has the same hash in every table.
            shutil.copyfile(names, inner.path / names.name)

    def _defended(self, inner: Run, name: str, seed: int) -> Defended:
        """The defended model, trained unless that was done before."""
        defence = self.defences[name]
        undefended = self._undefended(self.folder / "runs" / f"{NONE}-{seed}")
        data = DefenceData(
            private=self.plan.inputs.private,
            protected=self.protected_rows,
            public=self.plan.public_at_work,
            image_shape=self.plan.shape,
            training=self.plan.settings.target_training,
        )
        made: list[Defended] = []

        def fit(progress: Progress) -> Defended:
            return defence.fit(
                data,
                undefended.to(self.plan.device),
                # The seed of the undefended training, so that both begin alike.
                rng=generator(seed, "target"),
                progress=progress,
                device=self.plan.device,
            )

        def fill(folder: Path) -> None:
            one = fit(self.reporter.stage(name))
            made.append(one)
            if one.classifier is not None:
                save_classifier(one.classifier, folder / FILE_NAME)
            write_json(folder / "facts.json", dict(one.facts))

        folder = inner.stage("defended", fill)
        if made:
            return made[0]
        facts = json.loads((folder / "facts.json").read_text())
        if (folder / FILE_NAME).is_file():
            saved = load_classifier(folder)
            return Defended(target_of(saved, f"defended by {name}"), saved, facts)
        # What cannot be saved is made again, from the same seed.
        return fit(self.reporter.stage(name))

    def _undefended(self, folder: Path) -> Target:
        return target_of(load_classifier(folder / "stages" / "target"), "trained by this audit")

    def _write(
        self,
        names: Sequence[str],
        found: Mapping[str, Mapping[int, Audited]],
        failed: Mapping[str, str],
    ) -> DefendResult:
        outcomes = [
            Outcome(
                name=name,
                level=self.defences[name].level if name in self.defences else "none",
                what=self._what(name),
                audits=found[name] if name not in failed else {},
                failed=failed.get(name),
            )
            for name in names
        ]
        plan = self.plan
        summary = summarise(outcomes, tolerance=self.tolerance)
        value = {
            "version": importlib.metadata.version("inversight"),
            "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "run": self.run.absolute().name,
            "embedding": plan.settings.embedding,
            "fdr": plan.settings.fdr,
            "seeds": list(self.seeds),
            "attacks": {name: str(attack.access) for name, attack in plan.attacks.items()},
            "protected": {
                "count": len(self.protected),
                "of": len(self.samples),
                "rule": self.rule,
            },
            "accuracy_loss": self.tolerance,
            "settings": {name: dict(self.settings[name]) for name in self.defences},
            "warnings": self._warnings(),
            **summary,
        }
        table = per_image(outcomes, self.protected)
        write_json(self.folder / "defences.json", value)
        partial = self.folder / ".images.parquet.partial"
        table.to_parquet(partial, index=False)
        partial.replace(self.folder / "images.parquet")
        write_text(self.folder / "report.html", render_defences(value, table))
        return DefendResult(self.folder, value, table)

    def _what(self, name: str) -> str:
        if name == NONE:
            return "the same training without a defence"
        if name == GIVEN:
            return "the model that was audited"
        lines = (type(self.defences[name]).__doc__ or "").strip().splitlines()
        return lines[0] if lines else ""

    def _warnings(self) -> list[str]:
        if self.plan.inputs.target is None:
            return []
        return [
            "The audited model was given, and how it was trained is not known here. Defences are "
            "compared with a small classifier trained on the same images ('none'), not with it."
        ]


def _built(
    specs: Sequence[str | dict[str, Any]],
) -> tuple[dict[str, Defence], dict[str, dict[str, Any]]]:
    """Defences by name, and their settings."""
    if not specs:
        raise ConfigError(
            f"--defence is missing: give one or more of {', '.join(DEFENCES)} or package.module:Class"
        )
    defences: dict[str, Defence] = {}
    settings: dict[str, dict[str, Any]] = {}
    for spec in specs:
        made = build(spec, DEFENCES, role="--defence")
        name = (spec if isinstance(spec, str) else str(spec["class"])).rpartition(":")[2]
        if not isinstance(made, Defence):
            raise ConfigError(
                f"--defence {name}: expected `level` and `fit(data, undefended, *, rng, "
                "progress, device)`"
            )
        if name in defences or name in (NONE, GIVEN):
            raise ConfigError(f"--defence {name}: is given twice")
        defences[name] = made
        known = hasattr(type(made), "__pydantic_fields__")
        values = to_mapping(made) if known else _mapping(spec)
        settings[name] = json.loads(json.dumps(values, default=str))
    return defences, settings


def _mapping(spec: str | dict[str, Any]) -> dict[str, Any]:
    return {} if isinstance(spec, str) else {k: v for k, v in spec.items() if k != "class"}


def _attacks(
    own: Sequence[str | dict[str, Any]], more: Sequence[str | dict[str, Any]]
) -> list[str | dict[str, Any]]:
    """The run's attacks, those asked for, and a black-box one if none of them is."""
    specs = [*own, *more]
    if all(build(spec, ATTACKS, role="--attack").access is Access.WHITE_BOX for spec in specs):
        specs.append(BLACK_BOX)
    return specs


def _protected(samples: pd.DataFrame, protect: float | None, fdr: float) -> tuple[list[str], str]:
    """Ids of the images that sample-level defences protect, and the rule in words."""
    if protect is None and "flagged" in samples:
        flagged = samples.loc[samples["flagged"].fillna(False).astype(bool), "id"].tolist()
        if flagged:
            return flagged, f"flagged at a false-discovery rate of {fdr:g}"
    share = SHARE if protect is None else protect
    by = (
        ["p_value", "nearest_distance", "id"]
        if "p_value" in samples
        else ["nearest_distance", "id"]
    )
    reached = samples[samples["nearest_distance"].notna()].sort_values(by)
    count = max(1, round(share * len(samples)))
    rule = f"the {count} with the smallest {'p value' if 'p_value' in by else 'distance'}"
    if protect is None:
        rule += ", since the run flags none"
    return reached.head(count)["id"].tolist(), rule


def _real_names(run: Path) -> dict[str, str]:
    """Hashed names -> real ones, where the run hashed them."""
    if not (run / "private-ids.json").is_file():
        return {}
    return {str(k): str(v) for k, v in read_mapping(run, "private-ids.json").items()}
