"""A small synthetic run for the tests of the report."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from inversight.report import GalleryItem, ReportData

HOSTILE = (
    "<img src=x onerror=alert(1)>.png",
    "</script><script>alert(2)</script>.png",
    '" onmouseover="alert(3)" x=".png',
    "{{ 7 * 7 }}{% raw %}.png",
    "&lt;b&gt;.png",
)


def samples(images: int = 30, *, seed: int = 0) -> pd.DataFrame:
    """Private images at distances from 1e-7 to 0.4; the last one has no reconstruction."""
    rng = np.random.default_rng(seed)
    nearest = rng.uniform(0.01, 0.4, images)
    nearest[1] = 1e-7
    counts = rng.integers(0, 4, images)
    best = np.where(counts > 0, 1.0 / np.maximum(nearest, 1e-6), 0.0)
    nearest[-1], counts[-1], best[-1] = np.nan, 0, 0.0
    reconstruction: list[str | None] = [f"p{i % 5}/{i:03d}.png" for i in range(images)]
    reconstruction[-1] = None
    return pd.DataFrame(
        {
            "id": [f"p{i % 5}/{i}.png" for i in range(images)],
            "label": [f"p{i % 5}" for i in range(images)],
            "ddcs_best": best,
            "ddcs_average": best * 0.9,
            "reconstructions": counts,
            "nearest_distance": nearest,
            "nearest_reconstruction": reconstruction,
            "exact_hit": nearest < 1e-6,
        }
    )


def metrics() -> dict[str, dict[str, Any]]:
    def bounded(value: float, low: float, high: float) -> dict[str, Any]:
        return {"value": value, "low": low, "high": high, "reconstructions": 60}

    def free(value: float, **extra: Any) -> dict[str, Any]:
        return {"value": value, "low": None, "high": None, **extra}

    return {
        "ddcs_best": bounded(3.21, 2.5, 4.1),
        "ddcs_average": bounded(2.87, 2.2, 3.6),
        "covered": bounded(0.71, 0.6, 0.8),
        "coverage": free(0.127, features="public", k=3),
        "density": free(0.311, features="public", k=3),
        "precision": free(0.443, features="public", k=3),
        "recall": free(0.037, features="public", k=3),
        "fid": {"value": None, "low": None, "high": None, "reason": "the features are <public>"},
        "frechet": free(11.83, features="public"),
        "knn_distance": free(1342.2),
        "accuracy_top1": bounded(0.941, 0.898, 0.966),
        "accuracy_top5": bounded(0.99, 0.97, 1.0),
    }


def metrics_of(
    gap: float | None = 0.4,
    p: float | None = 0.012,
    count: int | None = 0,
    *,
    not_judged: int = 0,
    **changes: Any,
) -> dict[str, dict[str, Any]]:
    """Metrics of a run that tested both the set and each image; None: without that test."""
    found = metrics()
    found["leakage_gap"] = {
        "value": gap, "low": -1.0, "high": 1.5, "private": 2.4, "holdout": 2.0, "p_value": p,
        **changes,
    }  # fmt: skip
    found["flagged"] = {
        "value": None if count is None else count / 30, "reason": "needs more holdout images",
        "count": count, "fdr": 0.1, "smallest_possible": 3, "private_images": 30 - not_judged,
        "holdout_images": 119, "not_judged": not_judged,
    }  # fmt: skip
    return found


def budget() -> pd.DataFrame:
    """Two attacks, of which one has no point but the whole."""
    whole = dict(attack="cma-es", budget=None, queries=5000, covered=0.5, ddcs_best=2.0)
    rows: list[dict[str, Any]] = [
        dict(whole, budget=100, queries=90, covered=0.2, covered_low=0.1, covered_high=0.3),
        dict(whole, budget=1000, queries=800, covered=0.4),
        dict(whole, budget=10_000),
        whole,
        dict(attack="gmi", budget=100, reason="too few for a start"),
        dict(attack="gmi", budget=1000, reason="too few for a start"),
        dict(attack="gmi", budget=None, queries=7000, covered=0.3, ddcs_best=1.0),
    ]
    return pd.DataFrame([{"reason": None, "reconstructions": 4, **row} for row in rows])


def png(colour: int, size: int = 8) -> bytes:
    out = io.BytesIO()
    Image.new("L", (size, size), colour).save(out, "PNG")
    return out.getvalue()


def hostile_data(**changes: Any) -> ReportData:
    """Data in which every text that a user can choose is hostile."""
    table = samples()
    for column in ("id", "label", "nearest_reconstruction"):
        table.loc[: len(HOSTILE) - 1, column] = list(HOSTILE)
    evil = HOSTILE[0]
    values: dict[str, Any] = {
        "title": evil,
        "metrics": {**metrics(), evil: {"value": None, "reason": evil, evil: evil}},
        "samples": table,
        "split": evil,
        "facts": {evil: evil},
        "embedding": evil,
        "holdout_nearest": np.linspace(0.05, 0.5, 40).tolist(),
        "budget": budget()
        .assign(attack=[evil] * 4 + [HOSTILE[1]] * 3)
        .replace("too few for a start", evil),
        "gallery": [GalleryItem(name, name, 2.0, 0.5, png(9), png(200)) for name in HOSTILE],
        "images": "full",
        "evaluator": {"holdout_accuracy": 0.9, evil: evil},
        "target": {evil: [evil]},
        "inputs": {"private": {"path": evil}},
        "settings": {evil: {evil: [{"class": evil}]}},
        "versions": {evil: evil},
        "stages": [(evil, 2.0), ("attack", 8.0)],
        "warnings": [*HOSTILE],
        "notes": [*HOSTILE],
    }
    return ReportData(**{**values, **changes})


def plain_data(**changes: Any) -> ReportData:
    values: dict[str, Any] = {"title": "An audit", "metrics": metrics(), "samples": samples()}
    return ReportData(**{**values, **changes})


def manifest(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "version": "0.1.0",
        "created": "2026-01-02T03:04:05Z",
        "seed": 3,
        "device": "cpu",
        "threads": 1,
        "preset": "quick",
        "embedding": "pixel",
        "features": "public",
        "guidance_embedding": "public",
        "images": "none",
        "finished": True,
        "settings": {"arm": "entropy", "prior": {"steps": 10}, "attack": [{"keep": 5}]},
        "inputs": {
            "private": {"path": "in", "images": 30, "classes": 5, "fingerprint": "f0"},
            "public": {"path": "out", "images": 50, "classes": None, "fingerprint": "f1"},
        },
        "evaluator": {"holdout_accuracy": 0.6},
        "versions": {"torch": "2.6"},
        "stages": [{"name": "prior", "seconds": 90.0}, {"name": "attack", "seconds": 30.0}],
        "warnings": ["mind this"],
        "notes": ["as a note"],
    }
    return {**values, **changes}


def write_run(
    folder: Path, table: pd.DataFrame | None = None, found: Any = None, **changes: Any
) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(manifest(**changes)), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(found or metrics()), encoding="utf-8")
    (samples() if table is None else table).to_parquet(folder / "samples.parquet")
    return folder
