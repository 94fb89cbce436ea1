"""Invented results of defences, as `inversight defend` writes them, for the tests of their page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from inversight.report.words import RATIOS
from tests.report.examples import DATA, HOSTILE, read_example

SEEDS = 3
EFFECTS = pd.read_csv(DATA / "defences.csv", index_col="name")
"""For each defence its title, its level, and the factor by which it changes each measure.

The row ``none`` has the measures themselves.
"""


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
    title, level, *row = EFFECTS.loc[name]
    keys = EFFECTS.columns[2:]
    base = dict(zip(keys, EFFECTS.loc["none"][2:], strict=True))
    factors = dict.fromkeys(keys, 1.0) if name == "none" else dict(zip(keys, row, strict=True))
    values = {key: base[key] * factors[key] for key in keys}
    changes = {
        key: spread(factors[key], 0.08, seeds)
        if key in RATIOS
        else spread(values[key] - base[key], 0.3, seeds)
        for key in keys
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
    values = read_example("defences.json")
    defences = [defence(str(name), seeds) for name in EFFECTS.index]
    defences[2]["facts"] = {"weights": [0.05, 0.5], "epsilon": 8.0}
    defences[4]["masked"] = "Plug & Play came out weaker than the genetic attack."
    values |= {"defences": defences + values["defences"], "seeds": list(range(seeds))}
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
