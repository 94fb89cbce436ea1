"""Invented results of defences, as `inversight defend` writes them, for the tests of their page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from inversight.report.words import RATIOS
from tests.report.examples import DATA, HOSTILE, read_example

EFFECTS = pd.read_csv(DATA / "defences.csv", index_col="name")
"""For each defence its title, its level, and the factor by which it changes each measure.

The row ``none`` has the measures themselves.
"""
KEYS = EFFECTS.columns[2:]
IMAGES = [f"{name}/{i}.png" for name in "abcd" for i in range(8)]


def spread(value: float, share: float, seeds: int) -> dict[str, Any]:
    """Return a mean with an interval of +- ``share``; none with one seed."""
    half = share * max(abs(value), 0.02)
    low, high = (value - half, value + half) if seeds > 1 else (None, None)
    return {"mean": value, "low": low, "high": high, "values": [value] * seeds}


def defence(name: str, seeds: int = 3) -> dict[str, Any]:
    undefended, base, row = name == "none", EFFECTS.loc["none"], EFFECTS.loc[name]
    factors = {key: 1.0 if undefended else row[key] for key in KEYS}
    values = {key: base[key] * factors[key] for key in KEYS}
    changes = {
        key: spread(factors[key], 0.08, seeds)
        if key in RATIOS
        else spread(values[key] - base[key], 0.3, seeds)
        for key in KEYS
    }
    moved = {
        "nearer": 9, "farther": 23, "newly_flagged": IMAGES[10:12],
        "no_longer_flagged": IMAGES[:3], "nearer_in_every_seed": IMAGES[11:14],
    }  # fmt: skip
    return {
        "name": name, "title": row["title"], "level": row["level"], "failed": None, "seeds": seeds,
        "what": f"What {row['title']} does, in one sentence.", "minutes": 4.25,
        "measures": {key: spread(value, 0.05, seeds) for key, value in values.items()},
        "changes": {} if undefended else changes, "images": None if undefended else moved,
        "masked": None, "facts": {},
    }  # fmt: skip


def found(seeds: int = 3, **changes: Any) -> dict[str, Any]:
    """Return ``defences.json``: five defences, one of them masked, and one that failed."""
    values = read_example("defences.json")
    defences = [defence(str(name), seeds) for name in EFFECTS.index]
    defences[2]["facts"] = {"weights": [0.05, 0.5], "epsilon": 8.0}
    defences[4]["masked"] = "Plug & Play came out weaker than the genetic attack."
    values |= {"defences": defences + values["defences"], "seeds": list(range(seeds))}
    return {**values, **changes}


def table(results: dict[str, Any] | None = None) -> pd.DataFrame:
    """Return ``images.parquet``: 32 images, the first eight of them protected."""
    rng = np.random.default_rng(0)
    number = np.arange(len(IMAGES))
    before = np.linspace(0.02, 0.2, len(IMAGES))
    frames = []
    for one in (results or found())["defences"]:
        if not one["failed"]:
            ratio = np.exp(rng.normal(0.2, 0.3, len(IMAGES)))
            columns = {
                "defence": one["name"], "id": IMAGES, "label": [name[0] for name in IMAGES],
                "protected": number < 8, "nearest_distance_before": before,
                "nearest_distance": before * ratio, "ratio": ratio,
                "flagged_before": (number < 4) * 1.0,
                "flagged_after": np.isin(number, (3, 10, 11)) / 3,
            }  # fmt: skip
            frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def hostile() -> tuple[dict[str, Any], pd.DataFrame]:
    """Return defences.json and images.parquet with every text that somebody can choose hostile."""
    results, evil = found(), HOSTILE[0]
    results |= dict.fromkeys(("run", "embedding", "created", "version"), evil)
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
