"""A whole audit takes each image through the distance network once, and stores it once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from inversight.core.console import Quiet
from inversight.data import load_images
from inversight.pipeline import execution, inputs, signals
from inversight.pipeline.audit_shadows import shadow_job
from inversight.pipeline.estimate import _EmbeddingSeconds
from inversight.pipeline.plan import Plan
from inversight.risk import units
from inversight.settings import resolve
from tests.examples import CountingPixels
from tests.pipeline.conftest import run_audit
from tests.pipeline.tiny import TINY, TWO, image_folders


@pytest.mark.parametrize("holdout", [True, False])
def test_each_image_is_embedded_and_stored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holdout: bool
) -> None:
    """With two attacks, signals, a budget, and either covariates and a holdout or a control."""
    monkeypatch.setattr(CountingPixels, "times", type(CountingPixels.times)())
    watched, twins = counted(monkeypatch, execution, "distance_to_public"), []
    for module in (inputs, units, signals):
        counted(monkeypatch, module, "find_twins", twins)
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
    contents = {image.numpy().tobytes() for one in (*images, *compared) for image in one.images}
    assert {CountingPixels.times[image] for image in contents} == {1}
    # One distance from the public images for the prior and for its adaptation.
    assert len(watched) == 1
    for stage in ("prior", "adaptation"):
        assert "frechet" in json.loads((run / "stages" / stage / "progress.json").read_text())[0]
    # Among the private images, and with a holdout among those of both.
    assert [len(images) for images in twins] == ([12 + 10, 12] if holdout else [12])


def counted(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, into: list[Any] | None = None
) -> list[Any]:
    """Note the first argument of each call of a function of ``module``, in a list."""
    calls, function = [] if into is None else into, getattr(module, name)

    def noting(first: Any, *others: Any, **more: Any) -> Any:
        calls.append(first)
        return function(first, *others, **more)

    monkeypatch.setattr(module, name, noting)
    return calls


def prepared(home: Path, **given: Any) -> Plan:
    return Plan.prepare(resolve({**TINY, **image_folders(home), **given}), Quiet())


def test_shadow_models_have_the_twins_of_the_scores(tmp_path: Path) -> None:
    plan = prepared(tmp_path)
    job = shadow_job(plan, None)
    assert job.images is plan.inputs.joined and job.twins is plan.inputs.twins().group


def test_a_public_network_is_trained_only_where_it_is_used(tmp_path: Path) -> None:
    pixels = {"embedding": "pixel", "features": "pixel"}
    plan = prepared(tmp_path, **pixels, exposure_embedding="public", arm="vanilla")
    assert not plan.needs_public_network(exposure=False) and plan.needs_public_network(
        exposure=True
    )
    for steps in (4, 0):  # without steps nothing is guided
        adaptation = {**TINY["adaptation"], "steps": steps}
        settings = resolve({**TINY, **pixels, "adaptation": adaptation})
        assert replace(plan, settings=settings).needs_public_network(exposure=False) == (steps > 0)


def test_an_embedding_is_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountingPixels, "times", type(CountingPixels.times)())
    seconds = _EmbeddingSeconds(prepared(tmp_path, embedding="tests.examples:CountingPixels"))
    assert 2 * seconds(10) == pytest.approx(seconds(20))
    assert seconds(10, "pixel") > 1.0
    assert CountingPixels.times.total() == 2 * (1 + 1 + 4)
