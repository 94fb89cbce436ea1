"""Single stages on the command line, each reading what the one before it wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from inversight.attacks import load_latents
from inversight.cli import main
from inversight.data import ImageSet
from inversight.priors import StylePrior
from inversight.score_folders import _named_sets
from tests.examples import OwnNetwork
from tests.test_audit import make
from tests.test_evaluation import assert_same

PRIOR = ("--set", "steps=4", "--set", "batch_size=4", "--set", "width=2")
TRAIN = ("--set", "epochs=3", "--set", "width=2")
ATTACK = ("--set", "pool=20", "--set", "candidates=4", "--set", "keep=3", "--set", "steps=2")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.chdir(tmp_path)
    return make(tmp_path, False)


@pytest.fixture
def made(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> dict[str, Path]:
    """A target and a prior, by their own commands."""
    assert run(capsys, "train", "--private", "private", "--out", "target", *TRAIN)[0] == 0
    assert run(capsys, "prior", "train", "--public", "public", "--out", "prior", *PRIOR)[0] == 0
    return folders


def test_from_training_to_scores(made: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "adapt", "--prior", "prior", "--target", "target", "--public", "public",
        "--guidance-embedding", "pixel", "--set", "steps=2", "--set", "iterations=2",
        "--out", "adapted",
    )  # fmt: skip
    assert (code, out) == (0, "adapted/prior.safetensors\n")
    before, after = (StylePrior.load(Path(f) / "prior.safetensors") for f in ("prior", "adapted"))
    w = torch.zeros(1, 64)
    assert not torch.equal(before(w), after(w))
    assert "objective" in after.log[-1]

    code, out, _ = run(
        capsys, "attack", "--prior", "adapted", "--target", "target", "--out", "attacked", *ATTACK
    )
    assert code == 0 and "inversight score --reconstructions attacked/reconstructions" in out
    assert load_latents(Path("attacked"))["labels"].tolist() == [0, 0, 0, 1, 1, 1]
    names = sorted(p.relative_to("attacked").as_posix() for p in Path("attacked").rglob("*.png"))
    assert names == [
        f"reconstructions/{c}/plug-and-play-000{i}.png" for c in ("ann", "bob") for i in (1, 2, 3)
    ]

    code, out, _ = run(
        capsys, "score", "--private", "private", "--holdout", "holdout", "--reconstructions",
        "attacked/reconstructions", "--embedding", "pixel", "--evaluator", "target",
        "--out", "scored",
    )  # fmt: skip
    assert code == 0 and "ddcs_best" in out and "Report: scored/report.html" in out
    assert len(pd.read_parquet("scored/samples.parquet")) == 12
    assert json.loads(Path("scored/metrics.json").read_text())["accuracy_top1"]["value"] is not None


def test_scoring_a_runs_folders_gives_the_runs_tables(
    made: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        "--set", "public_training.epochs=2", "--set", "prior.steps=3", "--set", "prior.width=2",
        "--set", "adaptation.steps=2", "--set", "evaluator_training.epochs=2", "--set",
        "attack=[{class: plug-and-play, pool: 20, candidates: 4, keep: 3, steps: 2, crops: 2}]",
    ]  # fmt: skip
    public = ("--embedding", "public", "--features", "public")
    code, _, err = run(
        capsys, "audit", "--private", "private", "--holdout", "holdout", "--public", "public",
        "--target", "target", *public, "--guidance-embedding", "public", *settings,
        "--out", "audited",
    )  # fmt: skip
    assert code == 0, err
    stages = Path("audited") / "stages"
    code, _, err = run(
        capsys, "score", "--private", "private", "--holdout", "holdout", "--reconstructions",
        "audited/reconstructions", *public, "--network", stages / "public-network",
        "--evaluator", stages / "evaluator", "--out", "scored",
    )  # fmt: skip
    assert code == 0, err
    one, other = (json.loads((Path(f) / "metrics.json").read_text()) for f in ("audited", "scored"))
    assert one == other
    tables = [
        pd.read_parquet(f"{name}/samples.parquet").drop(columns="nearest_set")
        for name in ("audited", "scored")
    ]
    pd.testing.assert_frame_equal(*tables)

    # More reconstructions added to the audit score as all of them at once.
    shutil.copytree("holdout", "more")
    for folder, options in (
        ("added", ["--reuse", "audited", "--reconstructions", "more"]),
        (
            "together",
            ["--private", "private", "--holdout", "holdout", "--reconstructions",
             "audited/reconstructions", "--reconstructions", "more", *public, "--network",
             stages / "public-network", "--evaluator", stages / "evaluator"],
        ),
    ):  # fmt: skip
        code, printed, err = run(capsys, "score", *options, "--out", folder)
        assert code == 0, err
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
    code, _, err = run(
        capsys, "score", "--reuse", "added", "--reconstructions", "more", "--out", "thrice"
    )
    assert code == 0, err
    assert set(json.loads(Path("thrice/metrics_by_set.json").read_text())) == {
        "plug-and-play", "more", "3-more",
    }  # fmt: skip


def test_a_scoring_goes_on(made: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    score = [
        "score",
        "--private",
        "private",
        "--reconstructions",
        "holdout",
        "--embedding",
        "pixel",
        "--holdout",
        "more",
        "--fdr",
        "0.3",
    ]
    shutil.copytree("holdout", "more")
    assert run(capsys, *score, "--out", "scored")[0] == 0
    tables = {f: (Path("scored") / f).read_bytes() for f in ("metrics.json", "samples.parquet")}
    # As a kill in the middle would have left it.
    shutil.rmtree("scored/stages/scores")
    for name in tables:
        (Path("scored") / name).unlink()
    manifest = json.loads(Path("scored/run.json").read_text())
    Path("scored/run.json").write_text(json.dumps({**manifest, "finished": False, "stages": []}))
    code, _, err = run(capsys, "score", "--resume", "scored")
    assert code == 0, err
    assert {f: (Path("scored") / f).read_bytes() for f in tables} == tables
    for options, message in (
        (["--resume", "target"], "not a run folder"),
        (["--resume", "scored", "--private", "private"], "leave the others out"),
        (["--out", "x"], "--reconstructions is missing"),
        (["--reconstructions", "holdout"], "--out is missing"),
    ):
        code, _, err = run(capsys, "score", *options)
        assert code == 2 and message in err
    next(Path("holdout/ann").iterdir()).unlink()
    code, _, err = run(capsys, "score", "--resume", "scored")
    assert code == 2 and "have changed" in err


def test_runs_that_cannot_be_added_to(
    made: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pixel = ["--embedding", "pixel", "--features", "pixel"]
    score = ["score", "--reconstructions", "holdout", "--out"]
    code, _, err = run(capsys, *score, "first", "--private", "private", *pixel)
    assert code == 0, err
    for options, message in (
        (["--reuse", "nothing"], "not a run folder"),
        (["--reuse", "first", "--embedding", "pixel"], "leave it out"),
        ([], "--private is missing"),
        (["--private", "private", "--memory", "1000", *pixel], "at least 16777216"),
    ):
        code, _, err = run(capsys, *score, "second", *options)
        assert code == 2 and message in err and err.count("\n") == 1
    next(Path("private/ann").iterdir()).unlink()
    code, _, err = run(capsys, *score, "second", "--reuse", "first")
    assert code == 2 and "not the ones it was scored against" in err
    shutil.rmtree("private")
    make(Path.cwd() / "again", False)
    shutil.copytree("again/private", "private")
    code, _, err = run(
        capsys, *score, "held", "--private", "private", "--holdout", "again/holdout", *pixel
    )
    assert code == 0, err
    next(Path("again/holdout/ann").iterdir()).unlink()
    code, _, err = run(capsys, *score, "second", "--reuse", "held")
    assert code == 2 and "holdout images are not the ones" in err
    assert not Path("second").exists()


def test_set_names_never_meet() -> None:
    one = ImageSet(
        torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1).long(), ("c/0",), ("c",), ("h",)
    )
    assert list(_named_sets([Path("a")], [one], ["3-a", "a"])) == ["4-a"]
    assert list(_named_sets([Path("x/a"), Path("y/a")], [one, one], [])) == ["1-a", "2-a"]
    assert list(_named_sets([Path("b")], [one], ["a"])) == ["b"]


def test_the_arms(made: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    logs = {}
    for arm in ("vanilla", "entropy", "natural-gradient"):
        code, _, err = run(
            capsys, "adapt", "--prior", "prior", "--target", "target", "--public", "public",
            "--arm", arm, "--guidance-embedding", "public", "--set", "steps=2", "--out", arm,
        )  # fmt: skip
        assert code == 0, err
        logs[arm] = StylePrior.load(Path(arm) / "prior.safetensors").log[-1]
    assert "objective" not in logs["vanilla"]
    assert logs["entropy"]["cosine"] == pytest.approx(1.0)
    assert logs["natural-gradient"]["cosine"] < 0.999


def own(path: Path) -> str:
    save_file(OwnNetwork(2).state_dict(), path)
    return f"tests.examples:own_network?weights={path}"


ADAPT = ("adapt", "--prior", "prior", "--public", "public", "--out", "new")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((*ADAPT, "--target", "target", "--arm", "entrpy"), ("entrpy", "did you mean entropy?")),
        ((*ADAPT, "--target", "target", "--guidance-embedding", "evaluator"), ("seen the private",)),
        ((*ADAPT, "--target", "target", "--set", "stps=3"), ("stps", "did you mean steps?")),
        ((*ADAPT, "--target", "nowhere"), ("nowhere", "no such file")),
        ((*ADAPT, "--target", "own"), ("2 classes", "--classes FILE")),
        (("attack", "--prior", "nowhere", "--target", "target", "--out", "new"), ("nowhere",)),
        (("attack", "--prior", "private/ann/0.png", "--target", "target", "--out", "new"),
         ("0.png", "not a prior")),
        (("attack", "--prior", "prior", "--target", "target", "--out", "prior"), ("other files",)),
        (("attack", "--prior", "prior", "--target", "target", "--out", "new", "--attack", "plug"),
         ("--attack plug",)),
        (("attack", "--prior", "prior", "--target", "target", "--out", "new", "--set", "keep=50"),
         ("keep <= candidates",)),
        (("score", "--private", "private", "--reconstructions", "public", "--embedding", "pixel",
          "--out", "new"), ("class x", "--private does not have")),
        (("score", "--private", "private", "--reconstructions", "private", "--embedding", "public",
          "--out", "new"), ("--network FILE",)),
        (("score", "--private", "private", "--reconstructions", "private", "--holdout", "public",
          "--embedding", "pixel", "--out", "new"), ("class x is not in --private",)),
    ],
)  # fmt: skip
def test_wrong_input(
    made: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    spec = own(made["private"].parent / "own.safetensors")
    code, _, err = run(capsys, *[spec if a == "own" else a for a in arguments])
    complaints = [line for line in err.splitlines() if line.startswith("inversight: ")]
    assert code == 2 and len(complaints) == 1 and "Traceback" not in err
    for part in parts:
        assert part in complaints[0]
    assert not Path("new").exists() and not list(Path.cwd().glob(".*"))


def test_a_stopped_prior_says_how_to_go_on_and_does(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("prior", "train", "--public", "public", *PRIOR, "--set", "checkpoint_seconds=1e-9")
    assert run(capsys, *command, "--out", "whole")[0] == 0

    from inversight.console import Terminal

    def stopping(self: Terminal, name: str) -> object:
        def progress(done: int, total: int, note: str = "") -> None:
            if name == "prior" and done == 3:
                raise KeyboardInterrupt

        return progress

    with monkeypatch.context() as patch:
        patch.setattr(Terminal, "stage", stopping)
        code, _, err = run(capsys, *command, "--out", "prior")
    assert code == 130 and "go on with: prior train again with the same --out" in err
    assert run(capsys, *command, "--out", "prior")[0] == 0
    whole, resumed = (Path(f) / "prior.safetensors" for f in ("whole", "prior"))
    assert whole.read_bytes() == resumed.read_bytes()
    assert not list(Path("prior").glob("checkpoint*"))
