"""``inversight triage``, from end to end: of an audit, of a folder, learned from an audit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from inversight import audit
from inversight.cli import main
from inversight.core.errors import RunError
from inversight.data import load_folder
from inversight.models.networks import load_classifier
from inversight.models.target import target_of
from inversight.pipeline.triage import EXPECTED, LEARNED, triage_run
from inversight.risk.signals import SIGNALS, forgetting_events, signals
from inversight.risk.triage import expected_risk
from tests.command import CommandLine
from tests.pipeline.tiny import TINY, class_folders

CLASSES = ("ann", "bob", "cid")
TRAIN = "--set epochs=3 --set width=2"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Private and public images of three classes, a target, an earlier state of it, an audit."""
    home = tmp_path_factory.mktemp("triage")
    for name, seed in (("private", 0), ("public", 2)):
        class_folders(home / name, seed, CLASSES[:2] if name == "public" else CLASSES, 6, False)
    shutil.copy(home / "private" / "ann" / "1.png", home / "private" / "ann" / "twin.png")
    for out, epochs in (("target", 6), ("early", 1)):
        with pytest.raises(SystemExit) as caught:
            main(
                ["train", "--private", str(home / "private"), "--out", str(home / out), "--set",
                 f"epochs={epochs}", "--set", "width=2"]
            )  # fmt: skip
        assert not caught.value.code
    audit(out=home / "run", **given(home))
    return home


def given(home: Path) -> dict[str, Any]:
    own = {name: home / name for name in ("private", "public")}
    return {**TINY, **own, "target": str(home / "target")}


@pytest.fixture
def home(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def test_a_finished_audit(home: Path, cli: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = cli.succeeds(f"triage run --out {out}")[0]
    table = pd.read_parquet(out / "triage.parquet")
    samples = pd.read_parquet("run/samples.parquet").set_index("id")
    assert list(table)[:4] == ["id", "label", EXPECTED, LEARNED]
    assert table[LEARNED].is_monotonic_decreasing
    facts = json.loads((out / "triage.json").read_text())
    assert set(facts["agreement"]) == {"nearest_distance", "ddcs_best"}
    for measure, sign in (("nearest_distance", -1), ("ddcs_best", 1)):
        by = facts["agreement"][measure]
        assert set(by) == {*SIGNALS, EXPECTED, LEARNED} - {"forgetting"}
        for name, found in by.items():
            if name in SIGNALS:
                x = SIGNALS[name].sign * samples[name]
            else:
                x = table.set_index("id")[name].loc[samples.index]
            expected = spearmanr(x, sign * samples[measure]).statistic
            assert found["value"] == pytest.approx(expected, abs=1e-9), (measure, name)
        best = facts["best"][measure]
        assert by[best]["value"] == max(by[n]["value"] for n in by if n in SIGNALS)
        assert f"best single signal, here: {best}" in printed
    assert "local_density" in printed and str(table["id"][0]) in printed


def test_private_images_and_a_target(home: Path, cli: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = cli.succeeds(
        f"triage --private private --target target --checkpoint early --out {out}"
    )[0]
    table = pd.read_parquet(out / "triage.parquet").set_index("id")
    private = load_folder(Path("private"), role="--private")
    models = [target_of(load_classifier(Path(n)), n) for n in ("target", "early")]
    found = signals(models[0], private, checkpoints=models[1:])
    ranked = table.loc[list(private.ids)]
    for name in SIGNALS:
        assert ranked[name].tolist() == found.values[name].tolist(), name
    right = torch.stack([m(private.floats()).argmax(1) == private.labels for m in reversed(models)])
    assert ranked["forgetting"].tolist() == forgetting_events(right).tolist()
    assert ranked[EXPECTED].tolist() == expected_risk(found.values).tolist()
    assert table[EXPECTED].is_monotonic_decreasing
    assert table["twins"].dropna().to_dict() == {
        "ann/1.png": "ann/1.png", "ann/twin.png": "ann/1.png",
    }  # fmt: skip
    assert LEARNED not in table and "Spearman" not in printed
    assert str(out / "triage.parquet") in printed.replace("\n", "")


def test_learned_from_an_audit_of_some_classes(
    home: Path, cli: CommandLine, tmp_path: Path
) -> None:
    few = audit(out=tmp_path / "few", limit=2, **given(home)).run
    out = tmp_path / "out"
    printed = cli.succeeds(f"triage --private private --target target --learn {few} --out {out}")[0]
    assert "Learned from 2 attacked classes, 1 others" in " ".join(printed.split())
    table = pd.read_parquet(out / "triage.parquet").set_index("id")
    measured = pd.read_parquet(few / "samples.parquet").set_index("id")["nearest_distance"]
    assert table[LEARNED].notna().all() and table[LEARNED].is_monotonic_decreasing
    assert set(table["label"][table["nearest_distance"].isna()]) == {"cid"}
    assert table["nearest_distance"].dropna().to_dict() == measured.to_dict()


def test_learning_from_names_that_are_hidden(home: Path, tmp_path: Path) -> None:
    hidden = audit(out=tmp_path / "hidden", hash_ids=True, **given(home)).run
    found = triage_run(hidden)
    plain = triage_run(home / "run")
    one, other = (
        {name: s.value for name, s in t.agreement["nearest_distance"].items() if name in SIGNALS}
        for t in (found, plain)
    )
    assert one == pytest.approx(other, rel=1e-6)
    assert not set(found.table["id"]) & set(plain.table["id"])


def test_another_target_or_other_images_are_no_teachers(
    home: Path, cli: CommandLine, tmp_path: Path
) -> None:
    base = ("triage", "--private", "private", "--learn", "run", "--out", tmp_path / "out")
    wrong = "--target target --mean 0.9 --std 0.1"
    cli.refuses([*base, wrong], "of the same target")
    class_folders(tmp_path / "other", 9, CLASSES, 2, False)
    line = cli.refuses([*base, f"--target target --private {tmp_path / 'other'}"])
    assert "is not in --private" in line
    assert not (tmp_path / "out").exists()


def test_runs_that_cannot_be_read(home: Path, cli: CommandLine, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree("run", old)
    shutil.copy(old / "stages" / "scores" / "samples.parquet", old / "samples.parquet")
    cli.refuses(f"triage {old}", "has no signals")
    manifest = json.loads((old / "run.json").read_text())
    (old / "run.json").write_text(json.dumps({**manifest, "finished": False}))
    cli.refuses(f"triage {old}", f"--resume {old}")
    with pytest.raises(RunError, match="not a run folder"):
        triage_run(tmp_path)
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    cli.refuses(f"triage run --out {full}", "holds other files")


def test_a_checkpoint_of_other_classes(home: Path, cli: CommandLine, tmp_path: Path) -> None:
    class_folders(tmp_path / "two", 0, CLASSES[:2], 3, False)
    cli.succeeds(f"train --private {tmp_path / 'two'} --out {tmp_path / 't2'}", TRAIN)
    triage = ("triage", "--private", "private", "--target", "target", "--out", tmp_path / "out")
    cli.refuses([*triage, f"--checkpoint {tmp_path / 't2'}"], "--checkpoint", "cid")
