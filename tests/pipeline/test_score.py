"""Scores through the Python interface: images in memory, and runs that are reused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from inversight import DataError, RunError, audit, score
from inversight.data import load_folder
from inversight.pipeline.score import resume_scoring
from tests.pipeline.tiny import TINY, class_folders

PIXEL = {"embedding": "pixel", "features": "pixel"}


@pytest.mark.parametrize("floats", [False, True])
def test_images_in_memory_score_as_folders_do(
    grey: dict[str, Path], tmp_path: Path, floats: bool
) -> None:
    folders = score(
        private=grey["private"], reconstructions=grey["holdout"], out=tmp_path / "folders", **PIXEL
    )
    arrays = {}
    for role in ("private", "holdout"):
        found = load_folder(grey[role], role=role)
        images = found.floats() if floats else found.images.numpy()
        arrays[role] = (images, np.array([found.classes[y] for y in found.labels.tolist()]))
    memory = score(
        private=arrays["private"], reconstructions=arrays["holdout"], out=tmp_path / "memory",
        **PIXEL,
    )  # fmt: skip
    assert memory.metrics == folders.metrics
    assert memory.samples["nearest_distance"].equals(folders.samples["nearest_distance"])
    with pytest.raises(RunError, match="given in memory"):
        resume_scoring(memory.run)
    with pytest.raises(RunError, match="in no folder"):
        score(reuse=memory.run, reconstructions=grey["holdout"], out=tmp_path / "more")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 8, 8), [0, 1], "expected images of shape"),
        (torch.zeros(2, 1, 8, 8), [0], "1 labels"),
        (torch.full((2, 1, 8, 8), 2.0), [0, 1], r"floats in \[0, 1\]"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int64), [0, 1], "int64"),
    ],
)
def test_arrays_of_another_shape_or_type(
    grey: dict[str, Path], tmp_path: Path, images: torch.Tensor, labels: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        score(
            private=grey["private"], reconstructions=(images, labels), out=tmp_path / "x", **PIXEL
        )
    assert not (tmp_path / "x").exists()


def test_a_run_of_some_classes_can_be_added_to(tmp_path: Path) -> None:
    """It was made with --limit: other classes of its folders do not count."""
    classes = ("ann", "bob", "cid")
    folders = {
        name: class_folders(tmp_path / name, seed, classes, 4, False)
        for seed, name in enumerate(("private", "holdout", "public"))
    }
    run = audit(out=tmp_path / "run", limit=2, **folders, **(TINY | PIXEL)).run
    more = class_folders(tmp_path / "more", 7, classes[:2], 3, False)
    added = score(reuse=run, reconstructions=more, out=tmp_path / "added")
    assert set(added.samples["label"]) == set(classes[:2])
    both = pd.read_parquet(added.run / "reconstructions.parquet").groupby("set")["id"].count()
    assert both.to_dict() == {"plug-and-play": 8, "more": 6}
