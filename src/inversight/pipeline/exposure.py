"""Exposure of an audit: its shadow models' job, the tables, and the pictures of the most exposed images."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import ImageFilter
from torch import Tensor

from inversight.core.run import read_object, write_json
from inversight.core.seeding import generator
from inversight.data import ImageSet, to_pil
from inversight.pipeline.metrics import METRICS
from inversight.pipeline.scored import hidden
from inversight.pipeline.shadows import NO_ROW, Measured, ShadowJob
from inversight.report.contents import ExposureItem
from inversight.risk.exposure import Exposure, exposure, membership_auc
from inversight.risk.given import given_model

TABLE = "exposure.parquet"
"""Exposure of every private and holdout image."""
GROUPS = "exposure_groups.parquet"
"""Exposure of every group, where there are groups."""
FLOOR = 1e-6
"""Distance below which all distances count as equal."""
_MOST_SHOWN = 12
_ROLES = ("private", "holdout")


def shadow_exposure(
    job: ShadowJob, found: Measured, given: Measured, *, fdr: float, looks: int
) -> Exposure:
    """Return the exposure that shadow models show, with the model under audit compared with them.

    Args:
        found: the shadow models.
        given: the model under audit in the same form, attacked in the same way; K = 1.
        looks: number of this look at the shadow models, 1 for the first.
    """
    images, private = job.images, job.is_private
    logs = log_distances(found)
    result = exposure(
        logs, found.membership, images.labels, images.groups, twins=job.twins, private=private,
        fdr=fdr, looks=looks, rng=generator(job.seed, "exposure"),
    )  # fmt: skip
    summary = dict(result.summary)
    summary["membership_auc"] = membership_auc(found.losses, found.membership, private=private)
    mean = summary["exposure_mean"]
    if job.private < len(images) and mean.value is not None:
        model = given_model(
            logs, found.membership, images.labels, log_distances(given)[0], private,
            images.groups, twins=job.twins,
        )  # fmt: skip
        if model.auc is not None and model.p_value is not None:
            extra = {"given_auc": model.auc, "given_p_value": model.p_value}
            summary["exposure_mean"] = replace(mean, extra={**mean.extra, **extra})
    return replace(result, summary=summary)


def log_distances(found: Measured) -> Tensor:
    """Return (K, N) natural logarithms of the distances, floored."""
    return found.distances.clamp_min(FLOOR).log()


def exposure_stage(
    folder: Path, metrics_file: Path, ledger: Path, job: ShadowJob, result: Exposure, *,
    hide: Callable[[str], str] = str,
) -> None:  # fmt: skip
    """Write metrics.json and samples.parquet with exposure added, and exposure.parquet.

    Args:
        folder: receives the files.
        metrics_file: the run's metrics.json without exposure.
        ledger: its samples.parquet without exposure.
    """
    images = job.images
    metrics = read_object(metrics_file)
    metrics |= {key: dict(one.as_json()) for key, one in result.summary.items()}
    write_json(folder / "metrics.json", {key: metrics[key] for key in METRICS if key in metrics})
    table = exposure_table(images, job.private, result.per_sample)
    hidden(table, hide).to_parquet(folder / TABLE, index=False)
    own = table[table["role"] == "private"].drop(columns=["label", "role"])
    if images.groups is None:
        own = own.drop(columns="group")
    samples = pd.read_parquet(ledger)
    added = own.assign(id=own["id"].map(hide).astype("string")).set_index("id")
    added = added.drop(columns=[name for name in added.columns if name in samples])
    joined = samples.assign(
        **{str(c): added[c].reindex(samples["id"]).array for c in added.columns}
    )
    order = ["exposure_shrunken", "exposure", "nearest_distance", "id"]
    joined.sort_values(
        order, ascending=[False, False, True, True], na_position="last", ignore_index=True
    ).to_parquet(folder / "samples.parquet", index=False)
    if result.groups:
        groups = pd.DataFrame({"group": pd.array([hide(g) for g in result.groups], dtype="string")})
        groups.assign(**_columns(result.per_group)).to_parquet(folder / GROUPS, index=False)


def exposure_table(images: ImageSet, private: int, columns: Mapping[str, Tensor]) -> pd.DataFrame:
    """Return a row for each image: ``id``, ``label``, ``role``, ``group`` and its exposure."""
    roles = [
        role
        for role, n in zip(_ROLES, (private, len(images) - private), strict=True)
        for _ in range(n)
    ]
    ids = [name.removeprefix(f"{role}/") for name, role in zip(images.ids, roles, strict=True)]
    groups = images.groups or (None,) * len(images)
    return pd.DataFrame(
        {
            "id": pd.array(ids, dtype="string"),
            "label": pd.array([images.classes[y] for y in images.labels.tolist()], dtype="string"),
            "role": pd.array(roles, dtype="string"),
            "group": pd.array(list(groups), dtype="string"),
            **_columns(columns),
        }
    )


def _columns(values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return columns as a table has them; ``exposed`` is unknown where there is no q-value."""
    found: dict[str, Any] = {name: one.numpy() for name, one in values.items()}
    if "exposed" in found:
        unknown = np.isnan(found["exposure_q"])
        found["exposed"] = pd.arrays.BooleanArray(found["exposed"].astype(bool), unknown)
    return found


def exposure_gallery(
    samples: pd.DataFrame,
    job: ShadowJob,
    found: Measured,
    names: Mapping[str, str],
    *,
    blurred: bool,
) -> tuple[ExposureItem, ...]:
    """Return the most exposed private images with reconstructions from a model with and one without.

    The two models are the pair whose difference is the median (of an even number, the larger one). None
    where pictures were not kept.

    Args:
        samples: the ledger, the most exposed first.
        names: names behind the ids of the ledger, where they are hidden.
    """
    if not len(found.pictures):
        return ()
    row_of = {name.partition("/")[2]: i for i, name in enumerate(job.images.ids[: job.private])}
    logs = log_distances(found)
    items = []
    for row in samples.head(_MOST_SHOWN).to_dict("records"):
        if not np.isfinite(row["exposure_shrunken"]):
            continue
        image = row_of[names.get(row["id"], row["id"])]
        pair = median_pair(logs[:, image], found.membership[:, image])
        if pair is None:
            continue
        inside, outside = pair
        pictures = [found.rows[model, image] for model in (inside, outside)]
        if any(one == NO_ROW for one in pictures):
            continue
        items.append(
            ExposureItem(
                id=row["id"], label=row["label"], exposure=float(row["exposure"]),
                low=float(row["exposure_low"]), high=float(row["exposure_high"]),
                p=float(row["exposure_p"]), private_png=_png(job.images.images[image], blurred),
                with_png=_png(found.pictures[pictures[0]], blurred),
                without_png=_png(found.pictures[pictures[1]], blurred),
                with_distance=float(found.nearest[inside, image]),
                without_distance=float(found.nearest[outside, image]),
            )
        )  # fmt: skip
    return tuple(items)


def median_pair(logs: Tensor, membership: Tensor) -> tuple[int, int] | None:
    """Return the models (with, without) of the pair whose difference of ``logs`` (K,) is the median."""
    inside = torch.where(membership[0::2], 0, 1) + torch.arange(0, len(logs), 2)
    outside = torch.where(membership[0::2], 1, 0) + torch.arange(0, len(logs), 2)
    differences = logs[outside] - logs[inside]
    known = differences.isfinite().nonzero().squeeze(1)
    if not len(known):
        return None
    order = known[differences[known].argsort(stable=True)]
    chosen = order[len(order) // 2]
    return int(inside[chosen]), int(outside[chosen])


def _png(image: Tensor, blurred: bool) -> bytes:
    picture, buffer = to_pil(image), io.BytesIO()
    if blurred:
        picture = picture.filter(ImageFilter.GaussianBlur(picture.width / 10))
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
