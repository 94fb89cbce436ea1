"""What a comparison of defences begins with: the defences, the audit, and the images to protect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from inversight.core.config import build, part, to_mapping
from inversight.core.console import Reporter
from inversight.core.errors import ConfigError, InputError, RunError
from inversight.core.run import read_manifest
from inversight.defences import Defence
from inversight.defences.base import NetworkChecked
from inversight.defences.outcomes import NONE
from inversight.pipeline.plan import Plan
from inversight.pipeline.timing import untrained_target
from inversight.settings import DEFENCES

Spec = str | dict[str, Any]
"""A name, or ``{"class": name or package.module:Class, setting: value}``."""

GIVEN = "given"
"""Name of the audited model itself where it was not trained by the audit."""

SHARE = 0.1
"""Fraction of the private images to protect where the run flags none."""


def build_defences(specs: Sequence[Spec]) -> tuple[dict[str, Defence], dict[str, dict[str, Any]]]:
    """Return the defences by name, and their settings."""
    if not specs:
        raise ConfigError(
            f"--defence is missing: give one or more of {', '.join(DEFENCES)} or package.module:Class"
        )
    defences: dict[str, Defence] = {}
    settings: dict[str, dict[str, Any]] = {}
    for spec in specs:
        built = build(spec, DEFENCES, role="--defence")
        given = part(spec, DEFENCES, role="--defence")
        name = given.name.rpartition(":")[2]
        if not isinstance(built, Defence):
            raise ConfigError(
                f"--defence {name}: expected `level` and `fit(data, undefended, *, rng, progress, "
                "device)`"
            )
        if name in defences or name in (NONE, GIVEN):
            raise ConfigError(f"--defence {name}: is given twice")
        defences[name] = built
        settings[name] = json.loads(json.dumps(to_mapping(given.settings), default=str))
    return defences, settings


def check_networks(defences: Mapping[str, Defence], plan: Plan, reporter: Reporter) -> None:
    """Check that each defence can train networks like the audited one, and say what it replaces in them.

    Defended models are networks of this package; a given target is checked as well, since one of its kind is
    what the owner would train.

    Raises:
        InputError: a defence cannot.
    """
    given = plan.inputs.target
    trained = untrained_target(
        plan.inputs.private, plan.shape, plan.settings.target_training.architecture
    )
    for name, defence in defences.items():
        if isinstance(defence, NetworkChecked):
            if given is not None:
                defence.check_network(given.module)
            replaced = defence.check_network(trained.module)
            if replaced is not None:
                reporter.say(f"{name}: {replaced} of the network that is trained")


def read_finished_audit(run: Path) -> dict[str, Any]:
    """Return the manifest of an audit that is finished and has a holdout."""
    manifest = read_manifest(run)
    if not manifest.get("finished"):
        raise RunError(f"{run}: the audit is not finished; continue it with --resume {run} first")
    if "given" not in manifest:
        raise RunError(
            f"{run}: is not an audit's run (it was scored from folders, and there is no model to "
            "defend)"
        )
    if "holdout" not in manifest["inputs"]:
        raise InputError(
            f"{run}: has no holdout, and the cost of a defence can be measured only on images that no "
            "model saw; audit with --holdout first"
        )
    return manifest


def choose_protected(
    samples: pd.DataFrame, protect: float | None, fdr: float
) -> tuple[list[str], str]:
    """Return the ids of the images that sample-level defences protect, and the rule in words."""
    if protect is None and "flagged" in samples:
        flagged = samples.loc[samples["flagged"].fillna(False).astype(bool), "id"].tolist()
        if flagged:
            return flagged, f"flagged at a false-discovery rate of {fdr:g}"
    first = ["p_value"] if "p_value" in samples else []
    reached = samples[samples["nearest_distance"].notna()]
    reached = reached.sort_values([*first, "nearest_distance", "id"])
    count = max(1, round((SHARE if protect is None else protect) * len(samples)))
    rule = f"the {count} with the smallest {'p value' if first else 'distance'}"
    if protect is None:
        rule += ", since the run flags none"
    return reached.head(count)["id"].tolist(), rule
