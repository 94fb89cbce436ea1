"""Whole audits, tiny: tables, privacy, parts of one's own, and the Python interface."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from inversight import AuditResult, audit, resume
from inversight.attacks import load_latents
from inversight.data import load_images
from inversight.models.networks import load_classifier
from inversight.models.target import Target, target_of
from inversight.pipeline.metrics import METRICS
from tests.examples import SampleAttack
from tests.pipeline.conftest import Once
from tests.pipeline.tables import COLUMNS, RISK_COLUMNS
from tests.pipeline.tiny import (
    BLACK_BOX,
    TINY,
    TWO,
    hashes,
    image_folders,
    own_target,
    read_result,
    shared_file,
    without_holdout,
)

pytestmark = pytest.mark.usefixtures("no_trials")
OLIVETTI = Path(__file__).parents[3] / "shared" / "data" / "olivetti"

WITH_RISK = [*COLUMNS[:-1], *RISK_COLUMNS, COLUMNS[-1]]

JOINED = [
    "loss", "margin", "entropy", "gradient_norm", "centre_distance", "local_density", "kind", "twins",
]  # fmt: skip


@pytest.mark.parametrize("colour", [False, True])
def test_a_whole_audit(finished_home: Path, tmp_path: Path, colour: bool) -> None:
    if colour:
        result = audit(out=tmp_path / "run", **image_folders(tmp_path, colour=True), **TINY)
    else:
        result = read_result(finished_home / "run")
    assert tuple(result.metrics) == METRICS
    for key in ("ddcs_best", "covered", "coverage", "frechet", "accuracy_top1", "knn_distance"):
        assert result.metrics[key]["value"] is not None, key
    assert list(result.samples) == WITH_RISK + JOINED and len(result.samples) == 12
    assert result.metrics["flagged"]["holdout_images"] == 10
    assert result.metrics["leakage_gap"]["value"] is not None
    assert set(result.samples["label"]) == {"ann", "bob"}
    run = result.run
    pd.testing.assert_frame_equal(pd.read_parquet(run / "samples.parquet"), result.samples)
    assert json.loads((run / "metrics.json").read_text()) == result.metrics
    assert len(list((run / "reconstructions").rglob("*.png"))) == 8
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["finished"] and manifest["seed"] == 0
    assert manifest["inputs"]["private"]["images"] == 12
    assert 0.0 <= manifest["evaluator"]["holdout_accuracy"] <= 1.0
    assert [s["name"] for s in manifest["stages"]] == [
        "target", "public-network", "prior", "evaluator", "adaptation",
        "attack-plug-and-play", "scores", "signals",
    ]  # fmt: skip
    assert not list(run.rglob("*.partial")) and not list(run.rglob("checkpoint*"))
    latents = load_latents(run / "stages" / "attack-plug-and-play")
    assert latents["latents"].shape[0] == 8 and set(latents) == {"latents", "labels", "losses"}


def test_nothing_in_a_run_is_a_pickle(finished: AuditResult) -> None:
    run = finished.run
    suffixes = {p.suffix for p in run.rglob("*") if p.is_file()}
    assert suffixes == {
        ".json", ".txt", ".md", ".png", ".parquet", ".html", ".safetensors", "",
    }  # fmt: skip
    assert [p.name for p in run.rglob("*") if p.is_file() and not p.suffix] == [".lock"]


def test_another_seed_gives_other_tables(
    finished: AuditResult, grey: dict[str, Path], tmp_path: Path
) -> None:
    """The same seed gives the same tables: see test_resume."""
    other = audit(out=tmp_path / "run", seed=4, **grey, **TINY).run
    assert hashes(finished.run) != hashes(other)


@pytest.fixture(scope="module")
def twins(once: Once) -> AuditResult:
    """The audit TINY, with one private image twice. Read only."""

    def fill(home: Path) -> None:
        folders = image_folders(home)
        ann = folders["private"] / "ann"
        shutil.copy(ann / "2.png", ann / "twin.png")
        audit(out=home / "run", **folders, **TINY)

    return read_result(once("twins", fill) / "run")


def test_signals_join_the_ledger_and_change_nothing_in_it(twins: AuditResult) -> None:
    run = twins.run
    scored = pd.read_parquet(run / "stages" / "scores" / "samples.parquet")
    pd.testing.assert_frame_equal(twins.samples[list(scored)], scored)
    samples = twins.samples.set_index("id")
    assert samples["twins"].dropna().to_dict() == {
        "ann/2.png": "ann/2.png", "ann/twin.png": "ann/2.png",
    }  # fmt: skip
    assert set(samples["kind"][samples["twins"].notna()]) == {"duplicate"}
    signals = pd.read_parquet(run / "signals.parquet").set_index("id").loc[samples.index]
    for name in JOINED:
        assert samples[name].equals(signals[name]), name
    assert signals["neighbour_distance"].gt(0).all()
    target = target_of(load_classifier(run / "stages" / "target"), "trained")
    private = load_images(run.parent / "private", role="--private")
    loss = cross_entropy(target(private.floats()), private.labels, reduction="none")
    assert samples["loss"].loc[list(private.ids)].tolist() == pytest.approx(loss.tolist(), rel=1e-4)
    assert "Kind" in twins.report.read_text()


def test_no_picture_by_default_and_no_name_by_choice(twins: AuditResult, tmp_path: Path) -> None:
    folders = {name: twins.run.parent / name for name in ("private", "holdout", "public")}
    table = tmp_path / "people.csv"
    rows = [f"private,ann/{i}.png,Ann Secret" for i in range(3)]
    table.write_text("\n".join(["role,id,person", *rows, "private,bob/0.png,Bob Secret"]))
    hidden = audit(
        out=tmp_path / "run", hash_ids=True, group_by=f"{table}:person", **folders, **TINY
    )
    plain, text = twins.report.read_text(), hidden.report.read_text()
    assert "data:image/png" not in plain and "ann/" in plain and str(twins.run.parent) in plain
    assert "ann/" not in text and "bob/" not in text and str(twins.run.parent) not in text
    assert "(hidden)" in text and "images in 2 classes" in text
    assert "people.csv" not in text and "Secret" not in text
    assert hidden.metrics["flagged"]["private_units"] == 13 - 3  # ann/2.png has a twin
    assert hidden.samples["group"].value_counts().tolist() == [3, 1]
    assert not set(hidden.samples["id"]) & set(twins.samples["id"])
    names = json.loads((hidden.run / "private-ids.json").read_text())
    assert {names[i] for i in hidden.samples["id"]} == set(twins.samples["id"])
    assert [names[i] for i in hidden.samples["twins"].dropna()] == ["ann/2.png", "ann/2.png"]
    for file in hidden.run.rglob("*.parquet"):
        table = pd.read_parquet(file)
        assert not table.map(lambda v: isinstance(v, str) and "ann" in v.lower()).any(axis=None), (
            file
        )
    assert hidden.samples["nearest_distance"].tolist() == twins.samples["nearest_distance"].tolist()


def test_custom_parts(
    grey: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attack is given no more access than it names."""
    seen: list[tuple[str, bool]] = []

    class Looking(SampleAttack):
        def run(self, target: Target, *args: Any, **named: Any) -> Any:
            x = torch.rand(1, 1, 8, 8, requires_grad=True)
            with torch.enable_grad():
                seen.append((str(target.access), target(x).requires_grad))
            return super().run(target, *args, **named)

    monkeypatch.setattr("tests.examples.SampleAttack", Looking)
    given = {
        "prior": {"class": "tests.examples:NoisePrior", "scale": 2.0},
        "attack": [{"class": "tests.examples:SampleAttack", "keep": 2}, *TINY["attack"]],
        "embedding": "tests.examples:HalfMeans",
        "features": "pixel",
    }
    result = audit(out=tmp_path / "run", **grey, **(TINY | given))
    manifest = json.loads((result.run / "run.json").read_text())
    assert manifest["arm"] == "none (own prior)"
    assert any("without adaptation" in note for note in manifest["notes"])
    assert seen == [("scores", False)] and manifest["queries"]["SampleAttack"] == 51
    names = sorted(p.name for p in (result.run / "reconstructions" / "ann").iterdir())
    assert names == [
        "SampleAttack-0001.png", "SampleAttack-0002.png",
        *(f"plug-and-play-000{i}.png" for i in range(1, 5)),
    ]  # fmt: skip
    assert result.metrics["coverage"]["features"] == "pixel"


def test_custom_target_with_its_own_class_order_and_its_warnings(
    grey: dict[str, Path], tmp_path: Path
) -> None:
    order = tmp_path / "classes.txt"
    order.write_text("zoe\nann\nbob\n")
    result = audit(
        out=tmp_path / "run", target=own_target(tmp_path, classes=3), classes=order, mean=(0.3,),
        std=(0.2,), **without_holdout(grey), **TINY,
    )  # fmt: skip
    manifest = json.loads((result.run / "run.json").read_text())
    assert manifest["target"]["mean"] == [0.3]
    assert not (result.run / "stages" / "target").exists()
    assert set(result.samples["label"]) == {"ann", "bob"}
    assert sorted(p.name for p in (result.run / "reconstructions").iterdir()) == ["ann", "bob"]
    assert any("class order (--classes)" in w for w in result.warnings)
    assert any("no holdout was given" in w for w in result.warnings)
    assert result.metrics["flagged"]["reason"].startswith("needs a holdout")


def test_without_a_holdout_there_is_a_control(finished_without_holdout: AuditResult) -> None:
    result = finished_without_holdout
    run = result.run
    manifest = json.loads((run / "run.json").read_text())
    assert [s["name"] for s in manifest["stages"]][-3:] == ["control", "scores", "signals"]
    # Pool, steps and crops of six candidates of two classes; pool, children and crops of four.
    assert manifest["queries"] == {
        "plug-and-play": 30 + 12 * 3 + 12 * 2,
        "mirror-black-box": 30 + 2 * 2 * 5 + 8 * 2,
    }
    assert any(n.startswith("mirror-black-box: the attack itself") for n in manifest["notes"])
    gap = result.metrics["control_gap"]
    assert gap["value"] == pytest.approx(gap["attack"] - gap["control"])
    assert gap["attack"] == pytest.approx(result.metrics["ddcs_best"]["value"])
    assert gap["reconstructions"] == 14 and gap["low"] is not None
    control = sorted((run / "stages" / "control").rglob("*.png"))
    assert [p.parent.name for p in control] == ["ann"] * 7 + ["bob"] * 7
    by_set = json.loads((run / "metrics_by_set.json").read_text())
    assert set(by_set) == {"plug-and-play", "mirror-black-box"}
    assert by_set["mirror-black-box"]["control_gap"]["reconstructions"] == 6
    assert not list((run / "reconstructions").rglob("control*"))
    for table in ("samples", "samples_by_set", "reconstructions"):
        assert "control" not in pd.read_parquet(run / f"{table}.parquet").to_csv()
    report = result.report.read_text()
    assert "Gap to the control" in report
    assert "plug-and-play 90, mirror-black-box 66" in report


def test_with_a_holdout_there_is_no_control(finished: AuditResult) -> None:
    assert not (finished.run / "stages" / "control").exists()
    assert "holdout" in finished.metrics["control_gap"]["reason"]
    assert "Gap to the control:" not in finished.report.read_text()


def test_another_arm_and_attack_change_no_earlier_stage_and_no_control(
    finished_without_holdout: AuditResult, grey: dict[str, Path], tmp_path: Path
) -> None:
    given = {"arm": "vanilla", "attack": [{**TWO["attack"][0], "steps": 1}, BLACK_BOX]}
    other = audit(out=tmp_path / "run", **without_holdout(grey), **{**TWO, **given}).run
    runs, controls = (finished_without_holdout.run, other), []
    for stage in ("target/target", "evaluator/target", "prior/prior", "adaptation/prior"):
        one, two = ((run / f"stages/{stage}.safetensors").read_bytes() for run in runs)
        assert (one == two) == (stage != "adaptation/prior")
    for run in runs:
        files = sorted((run / "stages" / "control").rglob("*.png"))
        controls.append([file.read_bytes() for file in files])
        assert len(files) == 14
    assert controls[0] == controls[1]


def test_overlap_by_choice_is_a_warning(grey: dict[str, Path], tmp_path: Path) -> None:
    given = {"allow_overlap": True, "images": "blurred"}
    result = audit(out=tmp_path / "run", **given, **shared_file(grey), **TINY)
    assert any("do not measure leakage" in w for w in result.warnings)
    report = result.report.read_text()
    assert "do not measure leakage" in report and report.count("data:image/png") >= 2


def test_thresholds(grey: dict[str, Path], tmp_path: Path) -> None:
    limits = ("covered>1", "ddcs_best<1e9", "flagged>=0")
    result = audit(out=tmp_path / "run", fail_on=limits, fdr=0.3, images="full", **grey, **TINY)
    assert result.exceeded and result.metrics["flagged"]["fdr"] == 0.3
    assert len(result.crossed) == 2 and result.crossed[0].startswith("ddcs_best<1000000000 (")
    card = json.loads((result.run / "model-card.json").read_text())["inversight"]
    assert [a["access"] for a in card["attacks"]] == ["white-box"]
    assert "access: white-box" in (result.run / "model-card.md").read_text()
    report = result.report.read_text()
    assert "false-discovery rate of 30 %" in report and report.count("data:image/png") >= 2
    assert resume(tmp_path / "run").crossed == result.crossed


def test_digits_by_default(tmp_path: Path) -> None:
    result = audit(out=tmp_path / "run", **TINY)
    assert len(result.samples) == 100
    manifest = json.loads((result.run / "run.json").read_text())
    assert "handwritten digits" in manifest["split"]
    assert "data:image/png" in result.report.read_text()  # published images are shown


@pytest.mark.skipif(not OLIVETTI.is_dir(), reason=f"no Olivetti faces at {OLIVETTI}")
def test_olivetti_faces(tmp_path: Path) -> None:
    given = {name: OLIVETTI / name for name in ("private", "holdout", "public")}
    result = audit(out=tmp_path / "run", limit=4, **given, **TINY)
    assert len(result.samples) == 20 and len(set(result.samples["label"])) == 4
    shape = json.loads((result.run / "run.json").read_text())["target"]["image_shape"]
    assert shape == [1, 32, 32]


def test_risk_against_queries(grey: dict[str, Path], tmp_path: Path) -> None:
    first = {"class": "cma-es", "pool": 30, "searches": 3, "population": 4, "keep": 3, "crops": 2}
    attacks = [*TINY["attack"], {**first, "generations": 3}]
    run = audit(
        private=grey["private"], public=grey["public"], **{**TINY, "attack": attacks},
        budget=(4, 60, 10**6), out=tmp_path / "run",
    ).run  # fmt: skip
    found = pd.read_parquet(run / "budget.parquet")
    assert found["attack"].tolist() == ["plug-and-play"] * 4 + ["cma-es"] * 4
    assert found["budget"].fillna(0).tolist() == [4, 60, 10**6, 0] * 2
    whole = json.loads((run / "run.json").read_text())["queries"]
    metrics = json.loads((run / "metrics_by_set.json").read_text())
    for name, rows in found.groupby("attack"):
        small, middle, large, all_of_it = rows.to_dict("records")
        assert large["queries"] == all_of_it["queries"] == whole[name]
        for key in ("covered", "ddcs_best", "nearest_distance"):
            assert large[key] == all_of_it[key]
        assert all_of_it["covered"] == metrics[name]["covered"]["value"]
        assert all_of_it["ddcs_best"] == pytest.approx(metrics[name]["ddcs_best"]["value"])
        assert 4 < middle["queries"] <= 60 and middle["reconstructions"] > 0
        assert pd.isna(middle["reason"]) and middle["covered"] > 0
        assert not pd.isna(small["reason"]) or small["queries"] <= 4
    assert "too few queries" in found["reason"][0]
    page = (run / "report.html").read_text()
    assert "Risk against queries" in page and "plug-and-play within 4 queries: too few" in page
    whole = json.loads((run / "metrics.json").read_text())
    assert "within" not in whole["coverage"]
    for key in ("covered", "ddcs_best", "ddcs_average"):
        points = whole[key]["within"]
        rows = found.astype(object).where(found.notna(), None).to_dict("records")
        for point, row in zip(points, rows, strict=True):
            assert point["value"] == row[key] and point["low"] == row[f"{key}_low"]
            assert all(point[k] == row[k] for k in ("attack", "budget", "queries", "reason"))
        assert points[0]["value"] is None and points[0]["reason"]
        assert points[3]["low"] <= points[3]["value"] <= points[3]["high"]
