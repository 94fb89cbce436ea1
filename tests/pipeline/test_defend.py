"""``inversight defend``: what is compared, what is taken over, what fails, what goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from inversight import AuditResult, audit
from inversight.core.console import Quiet
from inversight.core.errors import ConfigError, InputError, RunError
from inversight.pipeline.audit import resume
from inversight.pipeline.defend import DefendResult, defend
from tests.defences import examples
from tests.pipeline.conftest import Once, run_audit
from tests.pipeline.tiny import TINY, without_trials
from tests.refusals import refused

SAMPLES = {"class": "tests.examples:SampleAttack", "keep": 4}
BOTH: dict[str, Any] = {**TINY, "arm": "vanilla", "attack": [TINY["attack"][0], SAMPLES]}
TWIN, OTHER, BROKEN, ANSWERS, MORE_SAMPLES = (
    f"tests.defences.examples:{name}"
    for name in ("Twin", "Other", "Broken", "Answers", "MoreSamples")
)


@pytest.fixture(scope="session")
def home(once: Once) -> Path:
    """A folder with images and an audit of them (run), compared with Twin and Other. Read only."""

    def fill(folder: Path) -> None:
        run_audit(folder, BOTH)
        defend(folder / "run", [TWIN, OTHER])

    return once("defended", fill)


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    """The audit and its comparison, the test's own."""
    return Path(shutil.copytree(home / "run", tmp_path / "run"))


def rows(result: DefendResult) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in result.found["defences"]}


def test_same_training_changes_nothing_and_another_does(run: Path) -> None:
    result = defend(run, [TWIN, OTHER])
    found = rows(result)
    assert list(found) == ["none", "Twin", "Other"]
    same = {key: float(key.startswith("distance")) for key in found["Twin"]["changes"]}
    twin, other = (
        {key: change["mean"] for key, change in found[name]["changes"].items()}
        for name in ("Twin", "Other")
    )
    assert twin == same != other
    # What was protected was chosen by the run; it is not judged by the run again.
    metrics = json.loads((run / "metrics.json").read_text())
    assert result.found["seeds"] == [1]
    assert found["none"]["measures"]["ddcs_best"]["mean"] != metrics["ddcs_best"]["value"]
    assert result.found == json.loads((run / "defences" / "defences.json").read_text())
    assert result.report.read_text().startswith("<!doctype html>")
    stages = json.loads((run / "defences" / "runs" / "Twin-1" / "run.json").read_text())["stages"]
    shared = ("evaluator", "public-network", "prior")
    own = sum(s["seconds"] for s in stages if s["name"] not in shared)
    assert found["Twin"]["minutes"] == pytest.approx(own / 60, abs=0.01)
    images = pd.read_parquet(run / "defences" / "images.parquet")
    assert len(images) == 2 * 12
    of_twin = images[images["defence"] == "Twin"]
    assert (of_twin["ratio"] == 1.0).all() and of_twin["protected"].sum() == 1
    assert result.found["protected"]["count"] == 1
    assert "flags none" in result.found["protected"]["rule"]


def test_seeds_give_intervals_and_differ(run: Path) -> None:
    result = defend(run, [OTHER], seeds=2, protect=0.5, out=run.parent / "seeds")
    none = rows(result)["none"]["measures"]["ddcs_best"]
    assert result.found["seeds"] == [1, 2]
    assert none["values"][0] != none["values"][1]
    assert none["low"] < none["mean"] < none["high"]
    assert result.found["protected"]["count"] == 6


def test_failed_defence_is_reported_and_the_others_continue(run: Path) -> None:
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(manifest | {"stage_threads": {"target": 1}}))
    found = rows(defend(run, [BROKEN, TWIN]))
    assert found["Broken"]["failed"] == "ValueError: no such luck"
    assert found["Broken"]["measures"] == {}
    begun = json.loads((run / "defences" / "runs" / "Broken-1" / "run.json").read_text())
    assert begun["stage_threads"] == {"target": 1}  # those of the audit
    assert found["Twin"]["failed"] is None


def test_white_box_attack_is_kept_where_only_outputs_change(run: Path) -> None:
    defend(run, [ANSWERS])

    def latents(name: str, attack: str) -> bytes:
        stages = run / "defences" / "runs" / name / "stages"
        return (stages / f"attack-{attack}" / "latents.safetensors").read_bytes()

    assert latents("Answers-1", "plug-and-play") == latents("none-1", "plug-and-play")
    assert latents("Answers-1", "SampleAttack") != latents("none-1", "SampleAttack")


def test_stopped_comparison_continues(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = defend(run, [TWIN, OTHER])
    out = run.parent / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(examples.Other, "stop", True)
        with pytest.raises(KeyboardInterrupt):
            defend(run, [TWIN, OTHER], out=out)
    assert not (out / "defences.json").exists()
    monkeypatch.setattr(examples.Twin, "plan", examples.Broken.plan)  # is not trained again
    resumed = defend(run, [TWIN, OTHER], out=out)
    for one, other in zip(resumed.found["defences"], whole.found["defences"], strict=True):
        assert {**one, "minutes": 0} == {**other, "minutes": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"defences": [{"class": OTHER, "width": 3}]},
        {"protect": 0.5},
        {"attacks": [{**SAMPLES, "class": MORE_SAMPLES}]},
    ],
)
def test_other_settings_need_another_folder(run: Path, change: dict[str, Any]) -> None:
    before = (run / "defences" / "defences.json").read_bytes()
    with pytest.raises(RunError, match="--out"):
        defend(run, **{"defences": [TWIN], **change})
    assert (run / "defences" / "defences.json").read_bytes() == before


def test_part_of_a_comparison_is_not_resumed_alone(home: Path) -> None:
    with pytest.raises(RunError, match="defend"):
        resume(home / "run" / "defences" / "runs" / "Twin-1")


def test_hidden_names_stay_hidden_and_the_same(tmp_path: Path) -> None:
    run_audit(tmp_path, {**BOTH, "hash_ids": True})
    result = defend(tmp_path / "run", [TWIN])
    own = set(pd.read_parquet(tmp_path / "run" / "samples.parquet")["id"])
    assert set(result.images["id"]) == own
    assert not any("ann" in name or "bob" in name for name in own)
    assert (result.images["ratio"] == 1.0).all()


def test_given_model_is_compared_beside_one_trained_alike(home: Path, tmp_path: Path) -> None:
    run_audit(tmp_path, {**BOTH, "target": str(home / "run" / "stages" / "target")})
    result = defend(tmp_path / "run", [TWIN])
    found = rows(result)
    assert list(found) == ["none", "given", "Twin"]
    assert found["given"]["changes"]["ddcs_best"]["mean"] != 0.0
    assert found["Twin"]["changes"]["ddcs_best"]["mean"] == 0.0
    assert any("was given" in text for text in result.found["warnings"])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"finished": False}, "not finished"), ({"given": None}, "is not an audit's run")],
)
def test_rejects_a_run_that_is_no_finished_audit(
    run: Path, change: dict[str, Any], message: str
) -> None:
    shutil.rmtree(run / "defences")
    manifest = {**json.loads((run / "run.json").read_text()), **change}
    kept = {name: value for name, value in manifest.items() if value is not None}
    (run / "run.json").write_text(json.dumps(kept))
    with pytest.raises(RunError, match=message):
        defend(run, [TWIN])
    assert not (run / "defences").exists()


def test_rejects_an_audit_without_holdout(finished_without_holdout: AuditResult) -> None:
    with pytest.raises(InputError, match="holdout"):
        defend(finished_without_holdout.run, [TWIN])


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
def test_bad_input_is_one_line_and_writes_nothing(
    home: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        defend(home / "run", out=tmp_path / "out", **{"defences": [TWIN], **change})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_dp_sgd_refuses_spectral_normalisation_early_and_says_what_it_replaces(
    grey: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opacus", reason="opacus is not installed")
    run = tmp_path / "run"
    with without_trials():
        audit(**grey, **BOTH, target="tests.examples:spectral_network", out=run)
    trained = "inversight.pipeline.defend._Comparison.execute"
    monkeypatch.setattr(trained, lambda _: pytest.fail("went on to the training"))
    with refused("dp-sgd: linear (", "spectral normalisation"):
        defend(run, ["dp-sgd"])
    assert not (run / "defences").exists()


def test_dp_sgd_says_what_it_replaces(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opacus", reason="opacus is not installed")
    said: list[str] = []
    monkeypatch.setattr("inversight.pipeline.defend._Comparison.execute", lambda _: None)
    monkeypatch.setattr(Quiet, "say", lambda _, text: said.append(text))
    defend(run, ["dp-sgd"], out=run.parent / "new")
    assert [
        s for s in said if "dp-sgd: group normalisation in place of batch normalisation in" in s
    ]
