"""Invented results of defences, as `inversight defend` writes them, for the tests of their page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tests.report.examples import HOSTILE

SEEDS = 3
_NONE = {
    "holdout_accuracy": 0.81,
    "private_accuracy": 0.99,
    "leakage_gap": 0.62,
    "flagged": 0.14,
    "distance": 0.081,
    "distance_protected": 0.031,
    "distance_others": 0.09,
    "ddcs_best": 3.2,
    "ddcs_average": 2.7,
    "covered": 0.66,
    "coverage": 0.31,
    "accuracy_top1": 0.93,
}
RATIOS = ("distance", "distance_protected", "distance_others")
TITLES = {
    "none": ("undefended", "none"),
    "withhold": ("withhold images at risk", "sample"),
    "bido": ("bilateral dependency", "model"),
    "label-smoothing": ("negative label smoothing", "model"),
    "rounding": ("rounded scores", "output"),
    "mixup": ("mixup", "model"),
}
FACTORS = {
    "withhold": {"holdout_accuracy": 0.99, "leakage_gap": 0.8, "distance_protected": 1.9},
    "bido": {"holdout_accuracy": 0.96, "leakage_gap": 0.3, "distance": 1.4, "ddcs_best": 0.7},
    "label-smoothing": {"holdout_accuracy": 0.95, "leakage_gap": 0.33, "distance": 1.35},
    "rounding": {"leakage_gap": 0.98, "distance": 0.97},
    "mixup": {"holdout_accuracy": 1.01, "leakage_gap": 1.1, "distance": 0.93},
}


def spread(value: float, share: float, seeds: int) -> dict[str, Any]:
    """A mean with an interval of +- share; none with one seed."""
    half = share * max(abs(value), 0.02)
    bounded = seeds > 1
    return {
        "mean": value,
        "low": value - half if bounded else None,
        "high": value + half if bounded else None,
        "values": [value] * seeds,
    }


def images(names: tuple[str, ...] = ("a", "b", "c", "d"), each: int = 8) -> list[str]:
    return [f"{name}/{i}.png" for name in names for i in range(each)]


def defence(name: str, seeds: int = SEEDS) -> dict[str, Any]:
    title, level = TITLES[name]
    factors = FACTORS.get(name, {})
    values = {key: value * factors.get(key, 1.0) for key, value in _NONE.items()}
    changes = {
        key: spread(factors.get(key, 1.0), 0.08, seeds)
        if key in RATIOS
        else spread(values[key] - _NONE[key], 0.3, seeds)
        for key in _NONE
    }
    listed = images()
    return {
        "name": name,
        "title": title,
        "level": level,
        "what": f"What {title} does, in one sentence.",
        "failed": None,
        "seeds": seeds,
        "minutes": 4.25,
        "measures": {key: spread(value, 0.05, seeds) for key, value in values.items()},
        "changes": {} if name == "none" else changes,
        "images": None
        if name == "none"
        else {
            "nearer": 9,
            "farther": 23,
            "newly_flagged": listed[10:12],
            "no_longer_flagged": listed[:3],
            "nearer_in_every_seed": listed[11:14],
        },
        "masked": None,
        "facts": {},
    }


def found(seeds: int = SEEDS, **changes: Any) -> dict[str, Any]:
    """``defences.json``: five defences, one of them masked, and one that failed."""
    defences = [defence(name, seeds) for name in TITLES]
    defences[2]["facts"] = {"weights": [0.05, 0.5], "epsilon": 8.0}
    defences[4]["masked"] = "Plug & Play came out weaker than the genetic attack."
    defences.append(
        {
            "name": "dp-sgd",
            "title": "differentially private training",
            "level": "model",
            "failed": "dp-sgd needs opacus: pip install inversight[dp]",
            "measures": {},
            "changes": {},
            "seeds": 0,
        }
    )
    values: dict[str, Any] = {
        "version": "0.2.0",
        "created": "2026-01-02T03:04:05Z",
        "run": "audit-1",
        "embedding": "public",
        "seeds": list(range(seeds)),
        "fdr": 0.1,
        "attacks": {"plug-and-play": "white-box", "genetic": "scores"},
        "protected": {"count": 8, "of": 32, "rule": "flagged at a false-discovery rate of 10 %"},
        "recommendation": {
            "defence": "bido",
            "reason": "It leaks least of those that keep 95 % of the accuracy.",
        },
        "warnings": ["The holdout has 20 images."],
        "defences": defences,
    }
    return {**values, **changes}


def table(results: dict[str, Any] | None = None) -> pd.DataFrame:
    """``images.parquet``: 32 images, the first eight of them protected."""
    rng = np.random.default_rng(0)
    names = images()
    frames = []
    for one in (results or found())["defences"]:
        if one["failed"]:
            continue
        before = np.linspace(0.02, 0.2, len(names))
        ratio = np.exp(rng.normal(0.2, 0.3, len(names)))
        frames.append(
            pd.DataFrame(
                {
                    "defence": one["name"],
                    "id": names,
                    "label": [name[0] for name in names],
                    "protected": [i < 8 for i in range(len(names))],
                    "nearest_distance_before": before,
                    "nearest_distance": before * ratio,
                    "ratio": ratio,
                    "flagged_before": [1.0 if i < 4 else 0.0 for i in range(len(names))],
                    "flagged_after": [1 / 3 if i in (3, 10, 11) else 0.0 for i in range(32)],
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def hostile() -> tuple[dict[str, Any], pd.DataFrame]:
    """Every text of defences.json and images.parquet that somebody can choose is hostile."""
    results, evil = found(), HOSTILE[0]
    for name in ("run", "embedding", "created", "version"):
        results[name] = evil
    results["attacks"] = {evil: evil}
    results["protected"]["rule"] = evil
    results["warnings"] = [*HOSTILE]
    results["recommendation"] = {"defence": evil, "reason": evil}
    rows = table()
    for i, name in enumerate(HOSTILE, 1):
        one = results["defences"][i]
        rows.loc[rows["defence"] == one["name"], "defence"] = name
        one |= {"name": name, "title": name, "what": name, "level": name, "masked": name}
        one["facts"] = {name: {name: name}}
        one["measures"][name] = {"mean": 1.0, "low": None, "high": None}
        one["images"]["newly_flagged"] = [*HOSTILE]
    results["defences"][-1]["failed"] = evil
    rows.loc[:4, "id"] = list(HOSTILE)
    rows.loc[40:44, "id"] = list(HOSTILE)
    return results, rows
