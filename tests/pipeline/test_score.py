"""``inversight score``: folders of reconstructions, added to a run, resumed, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import torch

from inversight.data import ImageSet
from inversight.pipeline.score_inputs import name_sets
from tests.command import CommandLine
from tests.pipeline.tables import assert_same
from tests.pipeline.tiny import image_folders


def test_scoring_a_runs_folders_gives_the_runs_tables(
    trained: dict[str, Path], cli: CommandLine
) -> None:
    settings = (
        "--set public_training.epochs=2 --set prior.steps=3 --set prior.width=2 "
        "--set adaptation.steps=2 --set evaluator_training.epochs=2 --set "
        "'attack=[{class: plug-and-play, pool: 20, candidates: 4, keep: 3, steps: 2, crops: 2}]'"
    )
    public = "--embedding public --features public"
    cli.succeeds(
        "audit --private private --holdout holdout --public public --target target",
        f"{public} --guidance-embedding public {settings} --out audited",
    )
    stages = "audited/stages"
    against = (
        "--private private --holdout holdout --reconstructions audited/reconstructions "
        f"{public} --network {stages}/public-network --evaluator {stages}/evaluator"
    )
    cli.succeeds(f"score {against} --out scored")
    one, other = (json.loads((Path(f) / "metrics.json").read_text()) for f in ("audited", "scored"))
    assert one == other
    audited, scored = (
        pd.read_parquet(f"{name}/samples.parquet").drop(columns="nearest_set")
        for name in ("audited", "scored")
    )
    # Without a target there are no signals of it.
    pd.testing.assert_frame_equal(audited[list(scored)], scored)
    assert "twins" in scored and "loss" in audited and "loss" not in scored

    # More reconstructions added to the audit score as all of them at once.
    shutil.copytree("holdout", "more")
    for folder, options in (("added", "--reuse audited"), ("together", against)):
        printed = cli.succeeds(f"score {options} --reconstructions more --out {folder}")[0]
        assert "more" in printed
    assert_same(
        *(json.loads((Path(f) / "metrics.json").read_text()) for f in ("added", "together"))
    )
    one, other = (
        pd.read_parquet(f"{f}/samples.parquet").set_index("id") for f in ("added", "together")
    )
    pd.testing.assert_series_equal(one["nearest_distance"], other["nearest_distance"])
    assert ((one["nearest_set"] == "more") == (other["nearest_set"] == "more")).all()
    by_set = json.loads(Path("added/metrics_by_set.json").read_text())
    assert set(by_set) == {"plug-and-play", "more"}
    assert (
        by_set["plug-and-play"]["ddcs_best"]
        == json.loads(Path("audited/metrics.json").read_text())["ddcs_best"]
    )
    # And again, to what was added to.
    cli.succeeds("score --reuse added --reconstructions more --out thrice")
    assert set(json.loads(Path("thrice/metrics_by_set.json").read_text())) == {
        "plug-and-play", "more", "3-more",
    }  # fmt: skip


def test_a_scoring_goes_on(trained: dict[str, Path], cli: CommandLine) -> None:
    score = (
        "score --private private --reconstructions holdout --embedding pixel --holdout more "
        "--fdr 0.3"
    )
    shutil.copytree("holdout", "more")
    cli.succeeds(score, "--out scored")
    tables = {f: (Path("scored") / f).read_bytes() for f in ("metrics.json", "samples.parquet")}
    # As a kill in the middle would have left it.
    shutil.rmtree("scored/stages/scores")
    for name in tables:
        (Path("scored") / name).unlink()
    manifest = json.loads(Path("scored/run.json").read_text())
    Path("scored/run.json").write_text(json.dumps({**manifest, "finished": False, "stages": []}))
    cli.succeeds("score --resume scored")
    assert {f: (Path("scored") / f).read_bytes() for f in tables} == tables
    for options, message in (
        ("--resume target", "not a run folder"),
        ("--resume scored --private private", "leave --private out"),
        ("--resume scored --seed 1", "leave --seed out"),
        ("--resume scored --memory 99999999", "leave --memory out"),
        ("--resume scored --fdr 0.2", "leave --fdr out"),
        ("--out x", "--reconstructions is missing"),
        ("--reconstructions holdout", "--out is missing"),
    ):
        cli.refuses(f"score {options}", message)
    next(Path("holdout/ann").iterdir()).unlink()
    cli.refuses("score --resume scored", "have changed")


def test_runs_that_cannot_be_added_to(trained: dict[str, Path], cli: CommandLine) -> None:
    pixel = "--embedding pixel --features pixel"
    score = "score --reconstructions holdout --out"
    cli.succeeds(f"{score} first --private private {pixel}")
    for options, message in (
        ("--reuse nothing", "not a run folder"),
        ("--reuse first --embedding pixel", "--embedding"),
        ("", "--private is missing"),
        (f"--private private --memory 1000 {pixel}", "equal to 16777216"),
    ):
        cli.refuses(f"{score} second {options}", message)
    next(Path("private/ann").iterdir()).unlink()
    cli.refuses(f"{score} second --reuse first", "the private images have changed")
    shutil.rmtree("private")
    image_folders(Path.cwd() / "again")
    shutil.copytree("again/private", "private")
    cli.succeeds(f"{score} held --private private --holdout again/holdout {pixel}")
    next(Path("again/holdout/ann").iterdir()).unlink()
    cli.refuses(f"{score} second --reuse held", "the holdout images have changed")


def test_set_names_never_meet() -> None:
    one = ImageSet(
        torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1).long(), ("c/0",), ("c",), ("h",)
    )
    assert list(name_sets(["a"], [one], ["3-a", "a"])) == ["4-a"]
    assert list(name_sets(["a", "a"], [one, one], [])) == ["1-a", "2-a"]
    assert list(name_sets(["b"], [one], ["a"])) == ["b"]
