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

DATA = Path(__file__).parent / "data"
HOSTILE = (
    "<img src=x onerror=alert(1)>.png",
    "</script><script>alert(2)</script>.png",
    '" onmouseover="alert(3)" x=".png',
    "{{ 7 * 7 }}{% raw %}.png",
    "&lt;b&gt;.png",
)


def samples(images: int = 30) -> pd.DataFrame:
    """Return private images at distances from 1e-7 to 0.4; the last one has no reconstruction."""
    rng = np.random.default_rng(0)
    nearest = rng.uniform(0.01, 0.4, images)
    counts = rng.integers(0, 4, images)
    nearest[[1, -1]], counts[-1] = (1e-7, np.nan), 0
    best = np.where(counts > 0, 1.0 / np.maximum(nearest, 1e-6), 0.0)
    number = range(images)
    return pd.DataFrame(
        {
            "id": [f"p{i % 5}/{i}.png" for i in number], "label": [f"p{i % 5}" for i in number],
            "ddcs_best": best, "ddcs_average": best * 0.9, "reconstructions": counts,
            "nearest_distance": nearest,
            "nearest_reconstruction": [*(f"p{i % 5}/{i:03d}.png" for i in number[:-1]), None],
            "exact_hit": nearest < 1e-6,
        }
    )  # fmt: skip


def read_example(name: str) -> Any:
    """Return the value in the JSON file ``name`` of the folder ``data``."""
    return json.loads((DATA / name).read_text(encoding="utf-8"))


def metrics() -> Any:
    return read_example("metrics.json")


def metrics_of(
    gap: float | None = 0.4, p: float | None = 0.012, count: int | None = 0, *,
    not_judged: int = 0, **changes: Any,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Return metrics of a run that tested both the set and each image; None: without that test."""
    gaps = {"value": gap, "low": -1.0, "high": 1.5, "private": 2.4, "holdout": 2.0, "p_value": p}
    flagged = {
        "value": None if count is None else count / 30, "reason": "needs more holdout images",
        "count": count, "fdr": 0.1, "smallest_possible": 3, "private_images": 30 - not_judged,
        "holdout_images": 119, "not_judged": not_judged,
    }  # fmt: skip
    return {**metrics(), "leakage_gap": {**gaps, **changes}, "flagged": flagged}


def budget() -> pd.DataFrame:
    """Two attacks, of which one has no point but the whole."""
    return pd.read_csv(DATA / "budget.csv")


def png(colour: int, size: int = 8) -> bytes:
    out = io.BytesIO()
    Image.new("L", (size, size), colour).save(out, "PNG")
    return out.getvalue()


def hostile_data() -> ReportData:
    """Return data in which every text that a user can choose is hostile."""
    table, evil = samples(), HOSTILE[0]
    for column in ("id", "label", "nearest_reconstruction"):
        table.loc[: len(HOSTILE) - 1, column] = list(HOSTILE)
    attacks = [evil] * 4 + [HOSTILE[1]] * 3
    return ReportData(
        **dict.fromkeys(("title", "split", "embedding"), evil),
        **{key: {evil: evil} for key in ("facts", "versions")},
        **{key: [*HOSTILE] for key in ("warnings", "notes")},
        metrics={**metrics(), evil: {"value": None, "reason": evil, evil: evil}},
        samples=table, holdout_nearest=np.linspace(0.05, 0.5, 40).tolist(),
        budget=budget().assign(attack=attacks).replace("too few for a start", evil),
        gallery=[GalleryItem(name, name, 2.0, 0.5, png(9), png(200)) for name in HOSTILE],
        images="full", evaluator={"holdout_accuracy": 0.9, evil: evil}, target={evil: [evil]},
        inputs={"private": {"path": evil}}, settings={evil: {evil: [{"class": evil}]}},
        stages=[(evil, 2.0), ("attack", 8.0)],
    )  # fmt: skip


def plain_data(**changes: Any) -> ReportData:
    return ReportData(
        **{"title": "An audit", "metrics": metrics(), "samples": samples(), **changes}
    )


def manifest(**changes: Any) -> dict[str, Any]:
    return {**read_example("run.json"), **changes}


def write_run(
    folder: Path, table: pd.DataFrame | None = None, found: Any = None, **changes: Any
) -> Path:
    folder.mkdir()
    for name, value in (("run", manifest(**changes)), ("metrics", found or metrics())):
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    (samples() if table is None else table).to_parquet(folder / "samples.parquet")
    return folder
