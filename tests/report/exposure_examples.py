"""A synthetic run with shadow models for the tests of the report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from inversight.report import ExposureItem, ReportData
from tests.report.examples import HOSTILE, hostile_data, metrics_of, png

SHADOWS = {
    "models": 24, "pairs": 12, "recipe": None, "looks": 1, "train_images": 200,
    "target_images": 200, "accuracy_in": 1.0, "accuracy_out": 0.93, "prior": "unadapted",
}  # fmt: skip
COLUMNS = (
    "exposure", "exposure_low", "exposure_high", "exposure_shrunken", "exposure_p", "exposure_q",
    "exposed",
)  # fmt: skip


def exposures(images: int = 200, exposed: int = 9, pairs: int = 12, seed: int = 0) -> pd.DataFrame:
    """Return the columns of exposure of ``images``, of which the ``exposed`` most exposed are flagged.

    The last one was not judged if there are several.
    """
    rng = np.random.default_rng(seed)
    error = 0.10 * np.sqrt(rng.chisquare(pairs - 1, images) / (pairs - 1))
    effect = np.where(np.arange(images) < exposed, 0.6, 0.05) + 0.03 * rng.normal(size=images)
    mean = effect + error * rng.normal(size=images)
    half = stats.t.ppf(0.975, pairs - 1) * error
    p = stats.t.sf(mean / error, pairs - 1)
    order = np.argsort(p)
    q = np.empty(images)
    ranked = p[order] * images / np.arange(1, images + 1)
    q[order] = np.minimum.accumulate(ranked[::-1])[::-1].clip(max=1.0)
    flags = np.zeros(images, bool)
    flags[order[:exposed]] = True
    table = pd.DataFrame(
        {
            "exposure": np.exp(mean), "exposure_low": np.exp(mean - half),
            "exposure_high": np.exp(mean + half), "exposure_shrunken": np.exp(0.05 + 0.6 * (mean - 0.05)),
            "exposure_p": p, "exposure_q": q, "exposed": pd.array(flags, dtype="boolean"),
        }
    )  # fmt: skip
    if images > 1:
        last = int(order[-1])
        table.loc[last, ["exposure_p", "exposure_q"]] = np.nan
        table.loc[last, "exposed"] = pd.NA
    return table


def exposure_metrics(
    value: float | None = 1.06, p: float | None = 0.0001, count: int | None = 9, images: int = 200,
    **changes: Any,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Return the metrics that need shadow models; ``changes`` are of ``exposure_mean``."""
    missing = None if value is not None else "needs shadow models: give --shadows K"
    mean = {"low": 1.04, "high": 1.09, "p_value": p, "models": 24, "pairs": 12, "detectable": 1.02}
    exposed = {
        "count": count, "images": images, "not_judged": 1, "fdr": 0.1, "models": 24,
        "detectable": 1.35, "reliability": 0.31,
    }  # fmt: skip
    share = None if count is None else count / images
    return {
        "exposed": {"value": share, "reason": "needs at least 8 shadow models", **exposed},
        "exposure_mean": {"value": value, "reason": missing, **mean, **changes},
        "exposure_auc": {"value": 0.607, "low": 0.58, "high": 0.63},
        "membership_auc": {"value": 0.64, "low": 0.61, "high": 0.67},
    }


def exposed_samples(images: int = 200, exposed: int = 9) -> pd.DataFrame:
    """Return samples.parquet of a run with a holdout and shadow models, in the order of distance."""
    rng = np.random.default_rng(1)
    nearest = rng.lognormal(-1.5, 0.5, images)
    p = rng.uniform(0.01, 1.0, images)
    table = pd.DataFrame(
        {
            "id": [f"{i % 10}/{i:03d}.png" for i in range(images)],
            "label": [str(i % 10) for i in range(images)],
            "ddcs_best": np.where(rng.random(images) < 0.4, 1.0 / nearest, 0.0),
            "nearest_distance": nearest,
            "nearest_reconstruction": [f"{i % 10}/{i % 17:02d}.png" for i in range(images)],
            "exact_hit": False, "p_value": p, "q_value": 1.0, "flagged": pd.array([False] * images),
        }
    )  # fmt: skip
    table = pd.concat([table, exposures(images, exposed)], axis=1)
    return table.sort_values(["nearest_distance", "id"], ignore_index=True)


def exposure_table(samples: pd.DataFrame, holdout: int = 200) -> pd.DataFrame:
    """Return exposure.parquet: the private images of ``samples``, then holdout images."""
    private = samples[["id", "label", *COLUMNS]].assign(role="private")
    names = [f"{i % 10}/h{i:03d}.png" for i in range(holdout)]
    other = exposures(holdout, 5, seed=2).assign(id=names, label="0", role="holdout")
    return pd.concat([private, other], ignore_index=True)


def exposure_item(name: str = "3/003.png", **changes: Any) -> ExposureItem:
    values = {
        "id": name, "label": "3", "exposure": 1.62, "low": 1.31, "high": 2.0, "p": 0.0004,
        "private_png": png(20), "with_png": png(60), "without_png": png(120),
        "with_distance": 0.118, "without_distance": 0.171,
    }  # fmt: skip
    return ExposureItem(**{**values, **changes})


def exposed_data(count: int = 200, exposed: int = 9, **changes: Any) -> ReportData:
    """Return a run on digits with shadow models, of which ``exposed`` images are flagged."""
    samples = exposed_samples(count, exposed)
    found = {
        **metrics_of(gap=0.05, p=0.10, count=0),
        **exposure_metrics(count=exposed, images=count),
    }
    values = {
        "title": "An audit", "metrics": found, "samples": samples, "shadows": SHADOWS,
        "exposures": exposure_table(samples), "images": "full",
        "exposure_gallery": [exposure_item(name) for name in samples["id"][:3]],
    }  # fmt: skip
    return ReportData(**{**values, **changes})


def hostile_exposed_data() -> ReportData:
    """Return data with shadow models in which every text that a user can choose is hostile."""
    data, evil = hostile_data(), HOSTILE[0]
    images = len(data.samples)
    group = [*HOSTILE, *["a"] * (images - len(HOSTILE))]
    samples = pd.concat([data.samples, exposures(images, 3)], axis=1).assign(group=group)
    table = exposure_table(samples, 10).assign(id=evil, label=evil)
    gallery = [exposure_item(name, label=name) for name in HOSTILE]
    row = {"access": evil, "attack": evil, "budget": evil, "meaning": evil}
    return replace(
        data, samples=samples, exposures=table, exposure_gallery=gallery,
        metrics={**data.metrics, **exposure_metrics(count=3, images=images)},
        shadows={**SHADOWS, "recipe": evil, "prior": evil},
        attempts=[row, {**row, "attack": ""}], training={evil: evil},
    )  # fmt: skip
