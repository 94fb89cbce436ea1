"""Invented results of defences, as `inversight defend` writes them, for the tests of their page."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tests.report.examples import DATA, HOSTILE, read_example


def found(seeds: int = 3, **changes: Any) -> dict[str, Any]:
    """Return ``defences.json``: five defences, one of them masked, and one that failed."""
    results = {**read_example("defences.json"), "seeds": list(range(seeds)), **changes}
    for one in results["defences"] if seeds == 1 else ():
        for measured in (*one["measures"].values(), *one["changes"].values()):
            measured |= {"low": None, "high": None}
    return results


def defence(name: str) -> dict[str, Any]:
    return next(one for one in found()["defences"] if one["name"] == name)


def table() -> pd.DataFrame:
    """Return ``images.parquet``: 32 images, the first eight of them protected."""
    return pd.read_csv(DATA / "images.csv")


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
