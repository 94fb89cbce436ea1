"""A whole audit takes each image through the distance network once."""

from __future__ import annotations

from pathlib import Path

import pytest

from inversight import audit
from inversight.data import load_folder
from tests.examples import CountingPixels
from tests.pipeline.tiny import TWO, without_holdout


@pytest.mark.parametrize("holdout", [True, False])
def test_each_image_is_embedded_once(
    grey: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holdout: bool
) -> None:
    """With two attacks, signals, a budget, and either a holdout or a control."""
    monkeypatch.setattr(CountingPixels, "times", type(CountingPixels.times)())
    folders = grey if holdout else without_holdout(grey)
    run = audit(
        **folders, **{**TWO, "embedding": "tests.examples:CountingPixels", "budget": (40,)},
        out=tmp_path / "run",
    ).run  # fmt: skip
    stages = [s for s in (run / "stages").iterdir() if (s / "images").is_dir()]
    assert len(stages) == 4 + (not holdout)
    images = [load_folder(s / "images", role="reconstructions", channels=1) for s in stages]
    images += [load_folder(path, role=role) for role, path in folders.items() if role != "public"]
    expected = {image.numpy().tobytes() for one in images for image in one.images}
    # Beside them come a blank image and the random ones of the forecast.
    assert {CountingPixels.times[image] for image in expected} == {1}
