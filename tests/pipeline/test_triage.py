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

from inversight import AuditResult, audit
from inversight.core.errors import RunError
from inversight.data import load_images
from inversight.models.networks import load_classifier
from inversight.models.target import target_of
from inversight.pipeline.triage import EXPECTED, LEARNED, triage_run
from inversight.risk.signals import SIGNALS, forgetting_events, signals
from inversight.risk.triage import expected_risk
from tests.command import CommandLine
from tests.pipeline.conftest import Once
from tests.pipeline.tiny import TINY, class_folders, without_trials

CLASSES = ("ann", "bob", "cid")
TARGET, EARLIER = "run/stages/target", "run/stages/evaluator"
"""The audit's target, and another classifier that stands for an earlier state of it."""


def audit_of(images: Path, out: Path, **settings: Any) -> Path:
    """Audit the images in a folder; return the run."""
    folders = {name: images / name for name in ("private", "public")}
    with without_trials():
        return audit(out=out, **folders, **TINY, **settings).run


@pytest.fixture(scope="session")
def images_and_audit(once: Once) -> Path:
    """A folder with private and public images of three classes, and an audit of them (run)."""

    def fill(home: Path) -> None:
        class_folders(home / "private", 0, CLASSES, 6, False)
        class_folders(home / "public", 2, CLASSES[:2], 6, False)
        shutil.copy(home / "private" / "ann" / "1.png", home / "private" / "ann" / "twin.png")
        audit_of(home, home / "run")

    return once("triage", fill)


@pytest.fixture
def home(images_and_audit: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(images_and_audit)
    return images_and_audit


def test_ranks_the_images_of_a_finished_audit(home: Path, cli: CommandLine, tmp_path: Path) -> None:
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


def test_ranks_private_images_by_signals_of_a_target(
    home: Path, cli: CommandLine, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    printed = cli.succeeds(
        f"triage --private private --target {TARGET} --checkpoint {EARLIER} --out {out}"
    )[0]
    table = pd.read_parquet(out / "triage.parquet").set_index("id")
    private = load_images(Path("private"), role="--private")
    models = [target_of(load_classifier(Path(n)), n) for n in (TARGET, EARLIER)]
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


def test_learns_from_an_audit_of_some_classes(home: Path, cli: CommandLine, tmp_path: Path) -> None:
    few = audit_of(home, tmp_path / "few", limit=2, target=str(home / TARGET))
    out = tmp_path / "out"
    command = f"triage --private private --target {TARGET} --learn {few} --out {out}"
    printed = cli.succeeds(command)[0]
    assert "Learned from 2 attacked classes, 1 others" in " ".join(printed.split())
    table = pd.read_parquet(out / "triage.parquet").set_index("id")
    measured = pd.read_parquet(few / "samples.parquet").set_index("id")["nearest_distance"]
    assert table[LEARNED].notna().all() and table[LEARNED].is_monotonic_decreasing
    assert set(table["label"][table["nearest_distance"].isna()]) == {"cid"}
    assert table["nearest_distance"].dropna().to_dict() == measured.to_dict()


def test_hidden_names_change_no_correlation(home: Path, tmp_path: Path) -> None:
    found = triage_run(audit_of(home, tmp_path / "hidden", hash_ids=True))
    plain = triage_run(home / "run")
    one, other = (
        {name: s.value for name, s in t.agreement["nearest_distance"].items() if name in SIGNALS}
        for t in (found, plain)
    )
    assert one == pytest.approx(other, rel=1e-6)
    assert not set(found.table["id"]) & set(plain.table["id"])


def test_rejects_an_audit_of_another_target_or_of_other_images(
    home: Path, cli: CommandLine, tmp_path: Path
) -> None:
    base = f"triage --learn run --target {TARGET} --out {tmp_path / 'out'} --private"
    cli.refuses(f"{base} private --mean 0.9 --std 0.1", "of the same target")
    class_folders(tmp_path / "other", 9, CLASSES, 2, False)
    cli.refuses(f"{base} {tmp_path / 'other'}", "is not in --private")
    assert not (tmp_path / "out").exists()


def test_rejects_runs_that_cannot_be_read(home: Path, cli: CommandLine, tmp_path: Path) -> None:
    old = Path(shutil.copytree("run", tmp_path / "old"))
    shutil.copy(old / "stages" / "scores" / "samples.parquet", old / "samples.parquet")
    cli.refuses(f"triage {old}", "has no signals")
    manifest = json.loads((old / "run.json").read_text())
    (old / "run.json").write_text(json.dumps({**manifest, "finished": False}))
    cli.refuses(f"triage {old}", f"--resume {old}")
    with pytest.raises(RunError, match="not a run folder"):
        triage_run(tmp_path)
    cli.refuses(f"triage run --out {tmp_path}", "holds other files")


def test_rejects_a_checkpoint_of_other_classes(
    home: Path, finished: AuditResult, cli: CommandLine, tmp_path: Path
) -> None:
    triage = f"triage --private private --target {TARGET} --out {tmp_path / 'out'}"
    other = finished.run / "stages" / "target"
    cli.refuses(f"{triage} --checkpoint {other}", "--checkpoint", "cid")
