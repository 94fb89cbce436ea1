"""Whole audits that several benchmarks start from: those of benchmarks/study.py, not guided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inversight.settings import AuditSettings, resolve
from study import BASE, SMALL, audit_arm, digest
from study_data import DATASETS

BUDGETS: dict[str, dict[str, Any]] = {
    "faces-32": {"adaptation": {"steps": 0}},
    "vehicles-same": {"prior": {"steps": 1500}, "adaptation": {"steps": 0}},
}
"""Less than the study's: here many models are attacked, and none of them by an adapted prior."""


def base_settings(
    name: str, seed: int, *, data: Path, work: Path, small: bool = False
) -> AuditSettings:
    """Settings of the audit of data set ``name``."""
    given: dict[str, Any] = {**DATASETS[name].given(seed, data, work), "seed": seed, "arm": BASE}
    given |= BUDGETS.get(name, {})
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


__all__ = ["base_audit", "base_settings", "digest"]
