"""The defence loop, tiny: what is compared, what is taken over, what fails, what goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from inversight import audit
from inversight.core.console import Quiet
from inversight.core.errors import ConfigError, InputError, RunError
from inversight.pipeline.audit import resume
from inversight.pipeline.defend import DefendResult, defend
from tests.defences import examples
from tests.pipeline.tiny import TINY, image_folders

pytestmark = pytest.mark.usefixtures("no_trials")
PLUG = TINY["attack"][0]
SAMPLES = {"class": "tests.examples:SampleAttack", "keep": 4}
MINE = "tests.defences.examples:MoreSamples"
BOTH: dict[str, Any] = {**TINY, "arm": "vanilla", "attack": [PLUG, SAMPLES]}
TWIN = "tests.defences.examples:Twin"
OTHER = "tests.defences.examples:Other"
BROKEN = "tests.defences.examples:Broken"
ANSWERS = "tests.defences.examples:Answers"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return image_folders(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return audit(out=tmp_path_factory.mktemp("audit") / "run", **folders, **BOTH).run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def rows(result: DefendResult) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in result.found["defences"]}


def test_the_same_training_changes_nothing_and_another_does(run: Path) -> None:
    result = defend(run, [TWIN, OTHER])
    found = rows(result)
    assert list(found) == ["none", "Twin", "Other"]
    for key, change in found["Twin"]["changes"].items():
        assert change["mean"] == (1.0 if key.startswith("distance") else 0.0), key
    assert any(
        c["mean"] != (1.0 if k.startswith("distance") else 0.0)
        for k, c in found["Other"]["changes"].items()
    )
    # What was protected was chosen by the run; it is not judged by the run again.
    metrics = json.loads((run / "metrics.json").read_text())
    assert result.found["seeds"] == [1]
    assert found["none"]["measures"]["ddcs_best"]["mean"] != metrics["ddcs_best"]["value"]
    assert result.found == json.loads((run / "defences" / "defences.json").read_text())
    assert result.report.read_text().startswith("<!doctype html>")
    stages = json.loads((run / "defences" / "runs" / "Twin-1" / "run.json").read_text())["stages"]
    own = sum(
        s["seconds"] for s in stages if s["name"] not in ("evaluator", "public-network", "prior")
    )
    assert found["Twin"]["minutes"] == pytest.approx(own / 60, abs=0.01)
    images = pd.read_parquet(run / "defences" / "images.parquet")
    assert len(images) == 2 * 12
    assert (images.loc[images["defence"] == "Twin", "ratio"] == 1.0).all()
    assert images.loc[images["defence"] == "Twin", "protected"].sum() == 1
    assert result.found["protected"]["count"] == 1
    assert "flags none" in result.found["protected"]["rule"]


def test_seeds_give_intervals_and_differ(run: Path) -> None:
    result = defend(run, [OTHER], seeds=2, protect=0.5)
    none = rows(result)["none"]["measures"]["ddcs_best"]
    assert result.found["seeds"] == [1, 2]
    assert none["values"][0] != none["values"][1]
    assert none["low"] < none["mean"] < none["high"]
    assert result.found["protected"]["count"] == 6


def test_what_failed_is_told_and_the_others_go_on(run: Path) -> None:
    found = rows(defend(run, [BROKEN, TWIN]))
    assert found["Broken"]["failed"] == "ValueError: no such luck"
    assert found["Broken"]["measures"] == {}
    assert found["Twin"]["failed"] is None


def test_answers_alone_leave_white_box_as_it_was(run: Path) -> None:
    defend(run, [ANSWERS])
    inner = run / "defences" / "runs"
    plug, samples = "attack-plug-and-play", "attack-SampleAttack"

    def latents(name: str, attack: str) -> bytes:
        file: Path = inner / name / "stages" / attack / "latents.safetensors"
        return file.read_bytes()

    assert latents("Answers-1", plug) == latents("none-1", plug)
    assert latents("Answers-1", samples) != latents("none-1", samples)


def test_stopped_it_goes_on_where_it_was(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples.Other, "stop", True)
    with pytest.raises(KeyboardInterrupt):
        defend(run, [TWIN, OTHER])
    assert not (run / "defences" / "defences.json").exists()
    monkeypatch.setattr(examples.Other, "stop", False)
    monkeypatch.setattr(examples.Twin, "plan", examples.Broken.plan)  # is not trained again
    resumed = defend(run, [TWIN, OTHER])
    monkeypatch.undo()
    fresh = defend(run, [TWIN, OTHER], out=run.parent / "fresh")
    for one, other in zip(resumed.found["defences"], fresh.found["defences"], strict=True):
        assert {**one, "minutes": 0} == {**other, "minutes": 0}


def test_other_settings_need_another_folder(run: Path) -> None:
    defend(run, [{"class": OTHER, "width": 3}])
    with pytest.raises(RunError, match="--out"):
        defend(run, [{"class": OTHER, "width": 4}])


@pytest.mark.parametrize("change", [{"protect": 0.5}, {"attacks": [{**SAMPLES, "class": MINE}]}])
def test_what_is_finished_is_not_mixed_with_another_comparison(
    run: Path, change: dict[str, Any]
) -> None:
    defend(run, [TWIN])
    before = (run / "defences" / "defences.json").read_bytes()
    with pytest.raises(RunError, match="--out"):
        defend(run, [TWIN], **change)
    assert (run / "defences" / "defences.json").read_bytes() == before


def test_a_part_is_not_resumed_alone(run: Path) -> None:
    defend(run, [TWIN])
    with pytest.raises(RunError, match="defend"):
        resume(run / "defences" / "runs" / "Twin-1")


def test_hidden_names_stay_hidden_and_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    run = audit(out=tmp_path / "run", **folders, **BOTH, hash_ids=True).run
    result = defend(run, [TWIN])
    own = set(pd.read_parquet(run / "samples.parquet")["id"])
    assert set(result.images["id"]) == own
    assert not any("ann" in name or "bob" in name for name in own)
    assert (result.images["ratio"] == 1.0).all()


def test_a_given_model_is_compared_beside_one_trained_alike(
    finished: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    target = shutil.copytree(finished / "stages" / "target", tmp_path / "model")
    run = audit(out=tmp_path / "run", target=str(target), **folders, **BOTH).run
    result = defend(run, [TWIN])
    found = rows(result)
    assert list(found) == ["none", "given", "Twin"]
    assert found["given"]["changes"]["ddcs_best"]["mean"] != 0.0
    assert found["Twin"]["changes"]["ddcs_best"]["mean"] == 0.0
    assert any("was given" in text for text in result.found["warnings"])


def test_without_a_holdout_or_an_end_it_refuses(
    run: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    for change, message in ((("finished", False), "not finished"), (("given", None), "audit")):
        manifest = json.loads((run / "run.json").read_text())
        manifest[change[0]] = change[1]
        if change[1] is None:
            del manifest[change[0]]
        bad = tmp_path / f"bad-{change[0]}"
        shutil.copytree(run, bad)
        (bad / "run.json").write_text(json.dumps(manifest))
        with pytest.raises(RunError, match=message):
            defend(bad, [TWIN])
        assert not (bad / "defences").exists()
    without = {k: v for k, v in folders.items() if k != "holdout"}
    other = audit(out=tmp_path / "other", **without, **BOTH).run
    with pytest.raises(InputError, match="holdout"):
        defend(other, [TWIN])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "--seeds"),
        ({"protect": 1.0}, "--protect"),
        ({"protect": float("nan")}, "--protect"),
        ({"tolerance": -0.1}, "--accuracy-loss"),
        ({"defences": []}, "--defence is missing"),
        ({"defences": [TWIN, TWIN]}, "twice"),
        ({"defences": ["removel"]}, "removal"),
        ({"defences": ["tests.examples:NoisePrior"]}, "fit"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Path, change: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"defences": [TWIN], **change}
    with pytest.raises(ConfigError, match=message) as caught:
        defend(run, given.pop("defences"), reporter=Quiet(), **given)
    assert "\n" not in str(caught.value)
    assert not (run / "defences").exists()
