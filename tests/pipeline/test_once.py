"""A whole audit takes each image through the distance network once, and stores it once."""

from __future__ import annotations

from pathlib import Path

import pytest

from inversight import audit
from inversight.data import load_folder
from tests.examples import CountingPixels
from tests.pipeline.tiny import TWO, without_holdout


@pytest.mark.usefixtures("no_trials")
@pytest.mark.parametrize("holdout", [True, False])
def test_each_image_is_embedded_and_stored_once(
    grey: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holdout: bool
) -> None:
    """With two attacks, signals, a budget, and either a holdout or a control."""
    monkeypatch.setattr(CountingPixels, "times", type(CountingPixels.times)())
    folders = grey if holdout else without_holdout(grey)
    run = audit(
        **folders, **{**TWO, "embedding": "tests.examples:CountingPixels", "budget": (40,)},
        out=tmp_path / "run",
    ).run  # fmt: skip
    made = [run / "reconstructions", *sorted((run / "stages").glob("*/reconstructions"))]
    # Attacks that the budget has cut down and the control's samples are no reconstructions of the run.
    names = ["attack-mirror-black-box-within-40", "attack-plug-and-play-within-40"]
    assert [f.parent.name for f in made[1:]] == [*names, *([] if holdout else ["control"])]
    samples = {*run.rglob("samples/*.png")}
    assert len({*run.rglob("*.png")} - samples) == sum(len(list(f.rglob("*.png"))) for f in made)
    images = [load_folder(folder, role="reconstructions", channels=1) for folder in made]
    assert {name.partition("/")[2].rpartition("-")[0] for name in images[0].ids} == {
        "plug-and-play", "mirror-black-box"
    }  # fmt: skip
    assert len(images[0]) == 2 * (4 + 3)
    images += [load_folder(path, role=role) for role, path in folders.items() if role != "public"]
    expected = {image.numpy().tobytes() for one in images for image in one.images}
    # Beside them comes a blank image.
    assert {CountingPixels.times[image] for image in expected} == {1}
