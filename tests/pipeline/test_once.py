"""A whole audit takes each reconstruction through the distance network once, and stores it once."""

from __future__ import annotations

from pathlib import Path

import pytest

from inversight.data import load_images
from tests.examples import CountingPixels
from tests.pipeline.conftest import run_audit
from tests.pipeline.tiny import TWO


@pytest.mark.parametrize("holdout", [True, False])
def test_each_reconstruction_is_embedded_and_stored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holdout: bool
) -> None:
    """With two attacks, signals, a budget, and either a holdout or a control.

    Covariates take private and holdout images through once more, beside the public images.
    """
    monkeypatch.setattr(CountingPixels, "times", type(CountingPixels.times)())
    settings = {**TWO, "embedding": "tests.examples:CountingPixels", "budget": (40,)}
    run_audit(tmp_path, settings, holdout=holdout)
    run = tmp_path / "run"
    made = [run / "reconstructions", *sorted((run / "stages").glob("*/reconstructions"))]
    # Attacks that the budget has cut down and the control's samples are no reconstructions of the run.
    names = ["attack-mirror-black-box-within-40", "attack-plug-and-play-within-40"]
    assert [f.parent.name for f in made[1:]] == [*names, *([] if holdout else ["control"])]
    samples = {*run.rglob("samples/*.png")}
    assert len({*run.rglob("*.png")} - samples) == sum(len(list(f.rglob("*.png"))) for f in made)
    images = [load_images(folder, role="reconstructions", channels=1) for folder in made]
    attacks = {name.partition("/")[2].rpartition("-")[0] for name in images[0].ids}
    assert attacks == {"plug-and-play", "mirror-black-box"}
    assert len(images[0]) == 2 * (4 + 3)
    real = ("private", "holdout") if holdout else ("private",)
    compared = [load_images(tmp_path / role, role=role) for role in real]
    for sets, expected in ((images, {1}), (compared, {2 if holdout else 1})):
        contents = {image.numpy().tobytes() for one in sets for image in one.images}
        assert {CountingPixels.times[image] for image in contents} == expected
