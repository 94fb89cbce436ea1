"""What a scoring leaves in a run folder, so that more reconstructions can be added to it later.

``reconstructions.parquet`` and ``samples_by_set.parquet`` are tables for people too;
``vectors.safetensors`` holds the small vectors (never LPIPS features) that set measures need.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from inversight.core.errors import RunError
from inversight.core.run import write_json
from inversight.pipeline.evaluation import Evaluation, ScoredSet, Subjects
from inversight.scores import Assignment
from inversight.settings import PAIR_MEASURES

FILES = (
    "metrics.json",
    "metrics_by_set.json",
    "samples.parquet",
    "samples_by_set.parquet",
    "reconstructions.parquet",
    "holdout.parquet",
)
"""What a run folder shows of a scoring."""

VECTORS = "vectors.safetensors"
_NAMES = ("id", "label", "nearest_reconstruction", "assigned_to")
"""Columns that hold names of images or classes."""

_WIDEST = 1 << 14
"""Values of one image's vector above which it is not kept: 64 KiB."""


def write_evaluation(folder: Path, found: Evaluation, *, hide: Callable[[str], str] = str) -> None:
    """Write all of ``found`` into ``folder``, which a stage makes visible when it is whole.

    ``hide`` is what becomes of names of images and classes before they are written.
    """
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
        for column in _NAMES:
            if column in table:
                hidden = [hide(v) if isinstance(v, str) else None for v in table[column]]
                table = table.assign(**{column: pd.array(hidden, dtype="string")})
        table.to_parquet(folder / f"{name}.parquet", index=False)
    tensors: dict[str, Tensor] = {}
    owners: list[tuple[str, Subjects | ScoredSet]] = [("subjects", found.subjects)]
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
        "classes": [hide(n) for n in found.subjects.classes],
        "ids": [hide(n) for n in found.subjects.ids],
        "labels": found.subjects.labels.tolist(),
        "holdout_ids": [hide(n) for n in found.subjects.holdout_ids],
        "holdout_labels": None
        if found.subjects.holdout_labels is None
        else found.subjects.holdout_labels.tolist(),
        "missing": dict(found.subjects.missing),
        "sets": [
            {"name": s.name, "ids": [hide(n) for n in s.ids], "labels": s.labels.tolist()}
            for s in found.sets
        ],
    }
    tensors["none"] = torch.zeros(1)  # a file of no tensors is no file
    save_file(tensors, folder / VECTORS, metadata={"inversight.pipeline.scored": json.dumps(names)})


def by_set(found: Evaluation) -> pd.DataFrame:
    """One row for each private image and set: its nearest reconstruction in that set."""
    frames = []
    for one in found.sets:
        rows = one.assignment.nearest_row.tolist()
        distance = one.assignment.nearest
        frames.append(
            pd.DataFrame(
                {
                    "set": one.name,
                    "id": found.subjects.ids,
                    "nearest_distance": distance.where(
                        distance.isfinite(), torch.tensor(float("nan"), dtype=distance.dtype)
                    ).numpy(),
                    "nearest_reconstruction": pd.array(
                        [one.ids[row] if row >= 0 else None for row in rows], dtype="string"
                    ),
                    **{m: values.numpy() for m, values in one.pairs.items()},
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def assignments(found: Evaluation) -> pd.DataFrame:
    """One row for each reconstruction: the private image of its class it is nearest to."""
    frames = []
    for one in found.sets:
        frames.append(
            pd.DataFrame(
                {
                    "set": one.name,
                    "id": one.ids,
                    "label": [found.subjects.classes[y] for y in one.labels.tolist()],
                    "assigned_to": [found.subjects.ids[i] for i in one.assignment.owner.tolist()],
                    "distance": one.assignment.distance.numpy(),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def read_scored(folder: Path) -> tuple[Subjects, tuple[ScoredSet, ...]]:
    """Read what :func:`write_evaluation` left in ``folder``.

    Raises:
        RunError: missing or damaged.
    """
    try:
        with safe_open(folder / VECTORS, "pt") as handle:
            names = json.loads((handle.metadata() or {})["inversight.pipeline.scored"])
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        table = pd.read_parquet(folder / "reconstructions.parquet")
        nearest = pd.read_parquet(folder / "samples_by_set.parquet")
        ids = tuple(names["ids"])
        position = {name: i for i, name in enumerate(ids)}
        held = names["holdout_labels"]
        subjects = Subjects(
            ids=ids,
            labels=torch.tensor(names["labels"]),
            classes=tuple(names["classes"]),
            holdout_ids=tuple(names["holdout_ids"]),
            holdout_labels=None if held is None else torch.tensor(held),
            features=tensors.get("subjects/features"),
            evaluator=tensors.get("subjects/evaluator"),
            missing=names["missing"],
        )
        sets = []
        for i, one in enumerate(names["sets"]):
            mine = table[table["set"] == one["name"]]
            near = nearest[nearest["set"] == one["name"]]
            row = {name: j for j, name in enumerate(one["ids"])}
            sets.append(
                ScoredSet(
                    name=one["name"],
                    ids=tuple(one["ids"]),
                    labels=torch.tensor(one["labels"]),
                    assignment=Assignment(
                        owner=torch.tensor([position[n] for n in mine["assigned_to"]]),
                        distance=torch.from_numpy(mine["distance"].to_numpy(copy=True)),
                        nearest=torch.from_numpy(
                            near["nearest_distance"].fillna(float("inf")).to_numpy(copy=True)
                        ),
                        nearest_row=torch.tensor(
                            [row.get(n, -1) for n in near["nearest_reconstruction"].fillna("")]
                        ),
                    ),
                    holdout=None
                    if held is None
                    else Assignment(
                        **{f.name: tensors[f"set{i}/holdout/{f.name}"] for f in fields(Assignment)}
                    ),
                    features=tensors.get(f"set{i}/features"),
                    evaluator=tensors.get(f"set{i}/evaluator"),
                    logits=tensors.get(f"set{i}/logits"),
                    pairs={
                        m: torch.from_numpy(near[m].to_numpy(copy=True))
                        for m in PAIR_MEASURES
                        if m in near
                    },
                )
            )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{folder}: holds no scores that more could be added to ({reason}); score all folders "
            "together instead"
        ) from None
    return subjects, tuple(sets)
