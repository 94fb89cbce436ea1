"""``inversight score``: folders of reconstructions, added to a run, resumed, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from inversight.data import ImageSet
from inversight.pipeline.score_inputs import name_sets
from tests.command import CommandLine
from tests.pipeline.tables import assert_same
from tests.pipeline.tiny import image_folders


def read(file: str) -> Any:
    return json.loads(Path(file).read_text())


def samples(run: str) -> pd.DataFrame:
    return pd.read_parquet(f"{run}/samples.parquet").set_index("id")


def test_scores_of_an_audits_reconstructions_are_the_audits(
    finished_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("private", "holdout", "public", "run"):
        Path(name).symlink_to(finished_home / name)
    against = (
        "--private private --holdout holdout --public public --embedding public "
        "--reconstructions run/reconstructions --features public "
        "--network run/stages/public-network --evaluator run/stages/evaluator"
    )
    cli.succeeds(f"score {against} --out scored")
    assert read("run/metrics.json") == read("scored/metrics.json")
    audited, scored = (samples(run).drop(columns="nearest_set") for run in ("run", "scored"))
    # Without a target there are no signals of it.
    pd.testing.assert_frame_equal(audited[list(scored)], scored)
    assert "twins" in scored and "loss" in audited and "loss" not in scored

    # More reconstructions added to the audit score as all of them at once.
    shutil.copytree("holdout", "more")
    for folder, options in (("added", "--reuse run"), ("together", against)):
        printed = cli.succeeds(f"score {options} --reconstructions more --out {folder}")[0]
        assert "more" in printed
    assert_same(read("added/metrics.json"), read("together/metrics.json"))
    one, other = map(samples, ("added", "together"))
    pd.testing.assert_series_equal(one["nearest_distance"], other["nearest_distance"])
    assert ((one["nearest_set"] == "more") == (other["nearest_set"] == "more")).all()
    by_set = read("added/metrics_by_set.json")
    assert set(by_set) == {"plug-and-play", "more"}
    assert by_set["plug-and-play"]["ddcs_best"] == read("run/metrics.json")["ddcs_best"]
    # And again, to what was added to.
    cli.succeeds("score --reuse added --reconstructions more --out thrice")
    assert set(read("thrice/metrics_by_set.json")) == {"plug-and-play", "more", "3-more"}


@pytest.mark.usefixtures("here")
def test_stopped_scoring_continues(cli: CommandLine) -> None:
    shutil.copytree("holdout", "more")
    cli.succeeds(
        "score --private private --reconstructions holdout --embedding pixel --features pixel",
        "--holdout more --fdr 0.3 --out scored",
    )
    files = [Path("scored") / name for name in ("metrics.json", "samples.parquet")]
    tables = [file.read_bytes() for file in files]
    # As a kill in the middle would have left it.
    shutil.rmtree("scored/stages/scores")
    for file in files:
        file.unlink()
    manifest = {**read("scored/run.json"), "finished": False, "stages": []}
    Path("scored/run.json").write_text(json.dumps(manifest))
    cli.succeeds("score --resume scored")
    assert [file.read_bytes() for file in files] == tables
    for options, message in (
        ("--resume private", "not a run folder"),
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


@pytest.mark.usefixtures("here")
def test_rejects_runs_that_cannot_be_added_to(cli: CommandLine) -> None:
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
    image_folders(Path("again"))
    cli.succeeds(f"{score} held --private again/private --holdout again/holdout {pixel}")
    next(Path("again/holdout/ann").iterdir()).unlink()
    cli.refuses(f"{score} second --reuse held", "the holdout images have changed")


@pytest.mark.parametrize(
    ("names", "taken", "expected"),
    [(["a"], ["3-a", "a"], ["4-a"]), (["a", "a"], [], ["1-a", "2-a"]), (["b"], ["a"], ["b"])],
)
def test_names_of_sets_are_distinct(
    names: list[str], taken: list[str], expected: list[str]
) -> None:
    pixels, label = torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    one = ImageSet(pixels, label, ("c/0",), ("c",), ("h",))
    assert list(name_sets(names, [one] * len(names), taken)) == expected
