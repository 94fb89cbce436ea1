"""The pictures of the report are chosen by what their heading says."""

from __future__ import annotations

from pathlib import Path

import torch

from inversight.data import image_set
from inversight.pipeline.report import GALLERY, make_gallery
from tests.report.exposure_examples import exposed_samples


def test_gallery_shows_the_nearest_images_of_a_ledger_that_is_sorted_by_exposure(
    tmp_path: Path,
) -> None:
    count = GALLERY + 6
    table = exposed_samples(count)
    table["nearest_reconstruction"] = "0/r.png"
    table.loc[2, "nearest_reconstruction"] = None
    by_exposure = table.sort_values("exposure_shrunken", ascending=False, ignore_index=True)
    by_exposure.to_parquet(tmp_path / "samples.parquet")
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, 8, 8), generator=rng, dtype=torch.uint8)
    labels, classes = table["label"].tolist(), sorted(set(table["label"]))
    private = image_set(images, labels, table["id"].tolist(), classes)
    made = image_set(images[:1], labels[:1], ["0/r.png"], classes)
    found = make_gallery(tmp_path, private, [made], blurred=False)
    nearest = table.sort_values("nearest_distance").head(GALLERY).drop(index=2)
    assert [item.id for item in found] == nearest["id"].tolist()
    assert len(found) == GALLERY - 1
