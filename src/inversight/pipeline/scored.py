"""The files that a scoring leaves in a run folder, so that more reconstructions can be added later.

The tables are for people. ``vectors.safetensors`` holds what is kept of each set of reconstructions:
names as JSON in its metadata, and the small tensors (never LPIPS features). ``nearness.json`` holds what
distances alone tell of each set.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from pydantic import ConfigDict, TypeAdapter
from pydantic_core import to_json
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from inversight.core.checkpoints import read_tensors
from inversight.core.config import to_mapping
from inversight.core.errors import RunError
from inversight.core.run import write_json
from inversight.pipeline.metrics import Evaluation, Scored, nearest_distances
from inversight.scores import Summary

FILES = (
    "metrics.json", "metrics_by_set.json", "samples.parquet", "samples_by_set.parquet",
    "reconstructions.parquet", "holdout.parquet",
)  # fmt: skip
"""Files of a scoring that a run folder shows."""

VECTORS = "vectors.safetensors"
NEARNESS = "nearness.json"
_METADATA = "inversight.pipeline.scored"
_TENSOR = "$tensor"
"""Key of the JSON object that stands for a tensor, its value the tensor's name in the file."""
_WIDEST = 1 << 14
"""Values of one image's vector above which it is not kept: 64 KiB."""
_NAMES = ("id", "label", "group", "twins", "nearest_reconstruction", "assigned_to")
"""Columns of tables that hold names of images, classes or groups."""


def hidden(table: pd.DataFrame, hide: Callable[[str], str]) -> pd.DataFrame:
    """Return ``table`` with ``hide`` applied to every name of an image, a class or a group."""
    return table.assign(
        **{
            column: table[column].map(hide, na_action="ignore").astype("string")
            for column in _NAMES
            if column in table
        }
    )


def write_evaluation(folder: Path, found: Evaluation, *, hide: Callable[[str], str] = str) -> None:
    """Write ``found`` to ``folder``; ``hide`` is applied to names of images, classes and groups."""
    write_json(folder / "metrics.json", found.metrics)
    write_json(folder / "metrics_by_set.json", found.by_set)
    write_json(folder / NEARNESS, to_mapping(found.nearness))
    tables = {
        "samples": found.samples,
        "samples_by_set": by_set(found),
        "reconstructions": assignments(found),
    }
    if found.holdout is not None:
        tables["holdout"] = found.holdout
    for name, table in tables.items():
        hidden(table, hide).to_parquet(folder / f"{name}.parquet", index=False)
    reference = found.reference
    groups = reference.groups
    if groups is not None:
        groups = tuple(None if group is None else hide(group) for group in groups)
    reference = replace(
        reference, ids=tuple(map(hide, reference.ids)), classes=tuple(map(hide, reference.classes)),
        holdout_ids=tuple(map(hide, reference.holdout_ids)), groups=groups,
    )  # fmt: skip
    sets = [replace(one, ids=tuple(map(hide, one.ids))) for one in found.sets]
    tensors: dict[str, Tensor] = {}

    def keep(tensor: Tensor) -> dict[str, str] | None:
        if tensor.ndim == 2 and tensor.shape[1] > _WIDEST:
            return None
        name = str(len(tensors))
        # A copy, since one tensor may be the features and the evaluator's.
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        return {_TENSOR: name}

    metadata = to_json([reference, sets], fallback=keep).decode()
    save_file(tensors, folder / VECTORS, metadata={_METADATA: metadata})


def by_set(found: Evaluation) -> pd.DataFrame:
    """Return one row for each private image and set: its nearest reconstruction in that set."""
    frames = []
    for one in found.sets:
        rows = one.assignment.nearest_row.tolist()
        names = pd.array([one.ids[row] if row >= 0 else None for row in rows], dtype="string")
        columns = {
            "set": one.name,
            "id": found.reference.ids,
            "nearest_distance": nearest_distances(one.assignment).numpy(),
            "nearest_reconstruction": names,
            **{m: values.numpy() for m, values in one.pairs.items()},
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def assignments(found: Evaluation) -> pd.DataFrame:
    """Return one row for each reconstruction: the private image of its class it is nearest to."""
    reference = found.reference
    frames = []
    for one in found.sets:
        owners = [reference.ids[i] for i in one.assignment.owner.tolist()]
        distance = one.assignment.distance.numpy()
        table = reference.table(one.ids, one.labels, assigned_to=owners, distance=distance)
        table.insert(0, "set", one.name)
        frames.append(table)
    return pd.concat(frames, ignore_index=True)


def read_nearness(folder: Path) -> dict[str, dict[str, Summary]]:
    """Return ``Evaluation.nearness`` as :func:`write_evaluation` left it in ``folder``."""
    adapter = TypeAdapter(dict[str, dict[str, Summary]])
    return adapter.validate_json((folder / NEARNESS).read_bytes())


def read_scored(folder: Path) -> Scored:
    """Return the reference and sets that :func:`write_evaluation` left in ``folder``.

    Raises:
        RunError: missing or damaged.
    """
    try:
        metadata, tensors = read_tensors(folder / VECTORS)
        found = json.loads(
            metadata[_METADATA], object_hook=lambda o: tensors[o[_TENSOR]] if _TENSOR in o else o
        )
        adapter = TypeAdapter(Scored, config=ConfigDict(arbitrary_types_allowed=True))
        return adapter.validate_python(found)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{folder}: holds no scores that more could be added to ({reason}); score all folders "
            "together instead"
        ) from None
