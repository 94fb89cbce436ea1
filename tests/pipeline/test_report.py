"""The pictures of the report are chosen by what their heading says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inversight import AuditResult
from inversight.cli.printing import print_result
from inversight.data import image_set
from inversight.pipeline.report import MOST_SHOWN, make_gallery
from tests.report.exposure_examples import exposed_samples


def test_caveats_are_printed_and_in_the_report(
    finished: AuditResult, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 6 private images and 4 reconstructions a class, on more features than images."""
    print_result(finished)
    out = " ".join(capsys.readouterr().out.split())
    text = finished.metrics["recall"]["caveat"]
    assert text.startswith("2 of 2 classes have fewer than 6 reconstructions")
    assert f"Caveat of recall: {text}." in out
    page = " ".join((finished.run / "report.html").read_text().split())
    assert f"{text}." in page and "caveat" not in finished.metrics["ddcs_best"]


def test_gallery_shows_the_nearest_images_of_a_ledger_that_is_sorted_by_exposure(
    tmp_path: Path,
) -> None:
    count = MOST_SHOWN + 6
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
    nearest = table.sort_values("nearest_distance").head(MOST_SHOWN).drop(index=2)
    assert [item.id for item in found] == nearest["id"].tolist()
    assert len(found) == MOST_SHOWN - 1
