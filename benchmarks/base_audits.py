"""Whole audits that several benchmarks start from: those of benchmarks/study.py, without guidance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inversight.settings import AuditSettings, resolve
from study import BASE, SMALL, audit_arm
from study_data import DATASETS, PLAIN_DESCENT, PLAIN_PRIOR, TRUNCATED

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
    "vehicles-same": {**_TO_THE_END, "prior": {**PLAIN_PRIOR, "steps": 1500}},
}
"""Differences from the study. Priors are not adapted, and faces are attacked with a smaller budget, since
many models are attacked. Targets are trained to the last epoch: with a hundred images early stopping ends the
training before anything could leak."""


def base_settings(
    name: str, seed: int, *, data: Path, work: Path, small: bool = False
) -> AuditSettings:
    """Return the settings of the audit of data set ``name``."""
    given: dict[str, Any] = {
        **DATASETS[name].given(seed, data, work),
        "seed": seed,
        "arm": BASE,
        "shadows": 0,
    }
    given |= BUDGETS.get(name, {})
    given["attack"] = [{**one, **TRUNCATED} for one in given["attack"]]
    return resolve(given | SMALL if small else given)


def base_audit(name: str, seed: int, *, data: Path, work: Path, small: bool = False) -> Path:
    """Return the finished run folder; run or resume the audit if it is missing."""
    settings = base_settings(name, seed, data=data, work=work, small=small)
    folder = work / f"{name}-{seed}" / BASE
    if (folder / "run.json").is_file() and json.loads((folder / "run.json").read_text())[
        "finished"
    ]:
        return folder
    audit_arm(settings, folder, folder)
    return folder
