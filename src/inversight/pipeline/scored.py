"""The files that a scoring leaves in a run folder, so that more reconstructions can be added later.

``reconstructions.parquet`` and ``samples_by_set.parquet`` are tables for people too;
``vectors.safetensors`` holds the small vectors (never LPIPS features) that set measures need;
``nearness.json`` what distances alone tell of each set.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from inversight.core.checkpoints import read_tensors
from inversight.core.errors import RunError
from inversight.core.run import write_json
from inversight.pipeline.metrics import Evaluation, ReferenceSet, ScoredSet, nearest_distances
from inversight.scores import Assignment, Summary
from inversight.settings import PAIR_MEASURES

FILES = (
    "metrics.json",
    "metrics_by_set.json",
    "samples.parquet",
    "samples_by_set.parquet",
    "reconstructions.parquet",
    "holdout.parquet",
)
"""Files of a scoring that a run folder shows."""

VECTORS = "vectors.safetensors"
NEARNESS = "nearness.json"
_METADATA = "inversight.pipeline.scored"
_WIDEST = 1 << 14
"""Values of one image's vector above which it is not kept: 64 KiB."""
_NAMES = ("id", "label", "twins", "nearest_reconstruction", "assigned_to")
"""Columns of tables that hold names of images or classes."""


def hidden(table: pd.DataFrame, hide: Callable[[str], str]) -> pd.DataFrame:
    """Return ``table`` with ``hide`` applied to every name of an image or a class."""
    return table.assign(
        **{
            column: pd.array(
                [hide(v) if isinstance(v, str) else None for v in table[column]], dtype="string"
            )
            for column in _NAMES
            if column in table
        }
    )


def write_evaluation(folder: Path, found: Evaluation, *, hide: Callable[[str], str] = str) -> None:
    """Write ``found`` to ``folder``; ``hide`` is applied to names of images and classes."""
    write_json(folder / "metrics.json", found.metrics)
    write_json(folder / "metrics_by_set.json", found.by_set)
    tables = {
        "samples": found.samples,
        "samples_by_set": by_set(found),
        "reconstructions": assignments(found),
    }
    if found.holdout is not None:
        tables["holdout"] = found.holdout
    for name, table in tables.items():
        hidden(table, hide).to_parquet(folder / f"{name}.parquet", index=False)
    nearness = {
        name: {key: {**vars(one), "extra": dict(one.extra)} for key, one in summaries.items()}
        for name, summaries in found.nearness.items()
    }
    write_json(folder / NEARNESS, nearness)
    reference = found.reference
    tensors: dict[str, Tensor | None] = {
        "reference/neighbour_distance": reference.neighbour_distance
    }
    owners: list[tuple[str, ReferenceSet | ScoredSet]] = [("reference", reference)]
    owners += [(f"set{i}", one) for i, one in enumerate(found.sets)]
    for name, owner in owners:
        for field in ("features", "evaluator", "logits"):
            vector = getattr(owner, field, None)
            if vector is not None and vector.shape[1] <= _WIDEST:
                tensors[f"{name}/{field}"] = vector.contiguous()
    for i, one in enumerate(found.sets):
        if one.holdout is not None:
            tensors |= {f"set{i}/holdout/{k}": v for k, v in vars(one.holdout).items()}
    names = {
        "classes": [hide(n) for n in reference.classes],
        "ids": [hide(n) for n in reference.ids],
        "labels": reference.labels.tolist(),
        "holdout_ids": [hide(n) for n in reference.holdout_ids],
        "holdout_labels": None
        if reference.holdout_labels is None
        else reference.holdout_labels.tolist(),
        "missing": dict(reference.missing),
        "sets": [
            {"name": s.name, "ids": [hide(n) for n in s.ids], "labels": s.labels.tolist()}
            for s in found.sets
        ],
    }
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    kept = kept or {"none": torch.zeros(1)}  # safetensors writes no file without tensors
    save_file(kept, folder / VECTORS, metadata={_METADATA: json.dumps(names)})


def by_set(found: Evaluation) -> pd.DataFrame:
    """Return one row for each private image and set: its nearest reconstruction in that set."""
    frames = [
        pd.DataFrame(
            {
                "set": one.name,
                "id": found.reference.ids,
                "nearest_distance": nearest_distances(one.assignment).numpy(),
                "nearest_reconstruction": pd.array(
                    [
                        one.ids[row] if row >= 0 else None
                        for row in one.assignment.nearest_row.tolist()
                    ],
                    dtype="string",
                ),
                **{m: values.numpy() for m, values in one.pairs.items()},
            }
        )
        for one in found.sets
    ]
    return pd.concat(frames, ignore_index=True)


def assignments(found: Evaluation) -> pd.DataFrame:
    """Return one row for each reconstruction: the private image of its class it is nearest to."""
    reference = found.reference
    frames = [
        pd.DataFrame(
            {
                "set": one.name,
                "id": one.ids,
                "label": [reference.classes[y] for y in one.labels.tolist()],
                "assigned_to": [reference.ids[i] for i in one.assignment.owner.tolist()],
                "distance": one.assignment.distance.numpy(),
            }
        )
        for one in found.sets
    ]
    return pd.concat(frames, ignore_index=True)


def read_nearness(folder: Path) -> dict[str, dict[str, Summary]]:
    """Return ``Evaluation.nearness`` as :func:`write_evaluation` left it in ``folder``."""
    found = json.loads((folder / NEARNESS).read_text(encoding="utf-8"))
    return {
        name: {key: Summary(**one) for key, one in summaries.items()}
        for name, summaries in found.items()
    }


def read_neighbour_distance(folder: Path) -> Tensor:
    """Return ``ReferenceSet.neighbour_distance``, in the order of the private images' ids."""
    with safe_open(folder / VECTORS, "pt") as handle:
        found: Tensor = handle.get_tensor("reference/neighbour_distance")
    return found


def read_scored(folder: Path) -> tuple[ReferenceSet, tuple[ScoredSet, ...]]:
    """Return the reference and sets that :func:`write_evaluation` left in ``folder``.

    Raises:
        RunError: missing or damaged.
    """
    try:
        metadata, tensors = read_tensors(folder / VECTORS)
        names = json.loads(metadata[_METADATA])
        table = pd.read_parquet(folder / "reconstructions.parquet")
        nearest = pd.read_parquet(folder / "samples_by_set.parquet")
        labels = names["holdout_labels"]
        reference = ReferenceSet(
            ids=tuple(names["ids"]), labels=torch.tensor(names["labels"]),
            classes=tuple(names["classes"]), holdout_ids=tuple(names["holdout_ids"]),
            holdout_labels=None if labels is None else torch.tensor(labels),
            features=tensors.get("reference/features"),
            evaluator=tensors.get("reference/evaluator"), missing=names["missing"],
            neighbour_distance=tensors.get("reference/neighbour_distance"),
        )  # fmt: skip
        sets = tuple(
            _read_set(
                f"set{i}", one, reference, tensors, table[table["set"] == one["name"]],
                nearest[nearest["set"] == one["name"]],
            )
            for i, one in enumerate(names["sets"])
        )  # fmt: skip
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{folder}: holds no scores that more could be added to ({reason}); score all folders "
            "together instead"
        ) from None
    return reference, sets


def _read_set(
    key: str,
    names: dict[str, Any],
    reference: ReferenceSet,
    tensors: dict[str, Tensor],
    table: pd.DataFrame,
    nearest: pd.DataFrame,
) -> ScoredSet:
    """Return one set: ``names`` of its images, its rows of reconstructions and samples_by_set."""
    position = {name: i for i, name in enumerate(reference.ids)}
    row = {name: j for j, name in enumerate(names["ids"])}
    distances = nearest["nearest_distance"].fillna(float("inf")).to_numpy(copy=True)
    rows = [row.get(n, -1) for n in nearest["nearest_reconstruction"].fillna("")]
    holdout = None
    if reference.holdout_labels is not None:
        found = {f.name: tensors[f"{key}/holdout/{f.name}"] for f in fields(Assignment)}
        holdout = Assignment(**found)
    return ScoredSet(
        name=names["name"],
        ids=tuple(names["ids"]),
        labels=torch.tensor(names["labels"]),
        assignment=Assignment(
            owner=torch.tensor([position[n] for n in table["assigned_to"]]),
            distance=torch.from_numpy(table["distance"].to_numpy(copy=True)),
            nearest=torch.from_numpy(distances),
            nearest_row=torch.tensor(rows),
        ),
        holdout=holdout,
        **{name: tensors.get(f"{key}/{name}") for name in ("features", "evaluator", "logits")},
        pairs={
            m: torch.from_numpy(nearest[m].to_numpy(copy=True))
            for m in PAIR_MEASURES
            if m in nearest
        },
    )
