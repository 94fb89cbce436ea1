"""Whole audits that several benchmarks start from: those of benchmarks/study.py, not guided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inversight.settings import AuditSettings, resolve
from study import BASE, SMALL, audit_arm
from study_data import DATASETS, PLAIN_DESCENT, TRUNCATED

_TO_THE_END: dict[str, Any] = {
    "adaptation": {"steps": 0},
    "target_training": {"validation": 0.0},
    "evaluator_training": {"validation": 0.0},
}
BUDGETS: dict[str, dict[str, Any]] = {
    "faces-32": {
        **_TO_THE_END,
        "attack": [
            {
                "class": "plug-and-play",
                "candidates": 20,
                "steps": 30,
                "keep": 10,
                "crops": 10,
                **PLAIN_DESCENT,
            }
        ],
    },
    "vehicles-same": {**_TO_THE_END, "prior": {"steps": 1500}},
}
"""Where this differs from the study: priors are not adapted and faces are attacked with less, since many
models are attacked; targets are trained to the last epoch, since with a hundred images early stopping ends
before anything could leak."""


def base_settings(
    name: str, seed: int, *, data: Path, work: Path, small: bool = False
) -> AuditSettings:
    """Settings of the audit of data set ``name``."""
    given: dict[str, Any] = {**DATASETS[name].given(seed, data, work), "seed": seed, "arm": BASE}
    given |= BUDGETS.get(name, {})
    given["attack"] = [{**one, **TRUNCATED} for one in given["attack"]]
    return resolve(given | SMALL if small else given)


def base_audit(name: str, seed: int, *, data: Path, work: Path, small: bool = False) -> Path:
    """The finished run folder, made or gone on with where it is not there."""
    settings = base_settings(name, seed, data=data, work=work, small=small)
    folder = work / f"{name}-{seed}" / BASE
    if (folder / "run.json").is_file() and json.loads((folder / "run.json").read_text())[
        "finished"
    ]:
        return folder
    audit_arm(settings, folder, folder)
    return folder
