"""The command line: one line for whatever is wrong, nothing written, and ``score`` from end to end."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from inversight import AuditResult
from inversight.core.config import is_settings, settings_fields
from inversight.core.run import Run
from inversight.report import load_report_data
from inversight.settings import AuditSettings
from tests.command import CommandLine
from tests.data.files import picture, save
from tests.reference.ddcs_loop import ddcs_loop
from tests.report.examples import write_run

AUDIT = "audit --private private --public public"
SCORE = "score --private private --reconstructions made --embedding pixel"
WEIGHTLESS = "--embedding pixel --features pixel --guidance-embedding pixel"


def folder(path: str, first: int, classes: str = "ab", each: int = 3) -> None:
    """Write ``each`` noise images of each class, from seed ``first`` on."""
    for i, name in enumerate(classes):
        for k in range(each):
            save(picture(first + 100 * i + k), Path(path, name, f"{k}.png"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder with images and reconstructions of two classes, and no published weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INVERSIGHT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    for first, name in enumerate(("private", "public", "made")):
        folder(name, 1000 * first)


# The command line itself

NO_WEIGHTS = ("vgg16-397923af.pth", "inversight weights import")
NO_LPIPS = ("lpips-vgg", *NO_WEIGHTS, "public or pixel")
REFUSED: list[tuple[str, ...]] = [
    ("audit --presett quick", "--presett", "did you mean --preset?"),
    ("audti", "audti", "did you mean audit?"),
    ("weights imprt x", "imprt", "did you mean import?"),
    ("audit --preset quik", "quik", "did you mean quick?"),
    ("audit --seed many", "--seed", "integer"),
    ("audit --arm natural", "--arm natural", "did you mean natural-gradient?"),
    ("audit --mean '0.5;0.5'", "--mean 0.5;0.5", "commas"),
    ("audit --set prior.Stps=5", "Stps", "did you mean steps?"),
    ("audit --set attack=5", "attack: expected names", "found 5"),
    ("audit --set prior", "--set prior", "NAME=VALUE"),
    ("audit --prior run --set prior.steps=5", "prior.steps", "prior is run"),
    ("audit --embedding lpips-vg", "lpips-vg", "did you mean lpips-vgg?"),
    ("audit --attack plug-and-pray", "plug-and-pray", "did you mean plug-and-play?"),
    ("audit --fail-on 'covered>1' --fail-on 'flag>0'", "flag>0", "flagged?"),
    ("audit --fdr 1.5", "fdr", "less than 1"),
    ("audit --fdr -0.1", "fdr", "greater than 0"),
    ("audit --embedding evaluator --fail-on 'flagged>0'", "give --embedding pixel"),
    ("audit --device gpu9", "gpu9"),
    ("audit --config none.yaml", "--config none.yaml", "cannot be read"),
    ("audit --private nowhere", "--public is missing"),
    (f"audit --private nowhere --public x {WEIGHTLESS}", "--private nowhere", "no such folder"),
    (AUDIT, *NO_LPIPS),
    ("audit --group-by x", "--group-by needs --private"),
    (f"{AUDIT} {WEIGHTLESS} --group-by '(x'", "--group-by '(x'", "regular expression"),
    (f"{AUDIT} {WEIGHTLESS} --group-by none.csv:who", "--group-by none.csv", "cannot be read"),
    (f"{AUDIT} {WEIGHTLESS} --group-by private", "of none of the 6 images", "like a/0.png"),
    (f"{AUDIT} {WEIGHTLESS} --group-by '[0-9]'", "group 0 has images of classes a and b"),
    ("audit --recipe m:train", "--recipe needs --target"),
    ("audit --pairs dists", *NO_WEIGHTS),
    ("audit --out private", "--out private", "other files"),
    ("audit --out private/a/0.png", "found a file"),
    ("audit --resume private", "private", "not a run folder"),
    ("audit --resume nowhere --seed 1", "--resume", "leave the others out"),
    ("score --private p", "--reconstructions"),
    ("score --private private --reconstructions made --out run", *NO_LPIPS),
    (f"{SCORE} --out run --fail-on 'flagged>0'", "needs a holdout"),
    (f"{SCORE} --out run --fail-on 'control_gap>0'", "of audits alone"),
    (f"{SCORE} --out run --embedding pixl", "--embedding pixl", "did you mean pixel?"),
    (f"{SCORE} --out run --embedding public", "needs --public"),
    (f"{SCORE} --out run --embedding evaluator", "needs --evaluator"),
    ("report nowhere", "nowhere", "run"),
    ("triage", "--private is missing", "give RUN"),
    ("triage nowhere", "nowhere", "not a run folder"),
    ("triage nowhere --private x", "leave --private out"),
    ("triage --private x --out o", "--target is missing"),
    ("triage --private x --target t", "--out is missing"),
    ("triage --private nowhere --target t --out o", "--private nowhere", "no such folder"),
    ("triage --private x --target t --out o --learn nowhere", "nowhere", "not a run folder"),
    ("compare nowhere elsewhere", "nowhere"),
    ("weights import nowhere.pth", "nowhere.pth", "no such file"),
    ("train --private nowhere --out t", "nowhere", "no such folder"),
    ("prior train --public nowhere --out t", "nowhere", "no such folder"),
    ("defend nowhere --defence removal", "not a run folder"),
    ("defend nowhere", "--defence is missing"),
    ("defend nowhere --defence remval", "did you mean removal?"),
    ("defend nowhere --defence mid --set mib.weight=1", "did you mean mid?"),
    ("defend nowhere --defence mid --set mid.wieght=1", "mean weight?"),
    ("defend nowhere --defense mid", "did you mean --defence?"),
]
"""Command lines, and parts of the line that refuses them."""


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row[0])
def test_rejects_wrong_command_lines(cli: CommandLine, row: tuple[str, ...]) -> None:
    cli.refuses(*row)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_rejects_out_without_permission(cli: CommandLine) -> None:
    Path("locked").mkdir(mode=0o500)
    cli.refuses("audit --out locked/run", "no permission")


def test_version_and_help(cli: CommandLine) -> None:
    assert cli("--version") == (0, f"inversight {importlib.metadata.version('inversight')}\n", "")
    out, _ = cli.succeeds("audit --help")
    for name, field in settings_fields(AuditSettings).items():
        assert (f"--{name.replace('_', '-')} " in out) != is_settings(field.annotation)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("inversight de", {"defend"}), ("inversight weights ", {"list", "check", "import"})],
)
def test_completion_of_commands(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, typed: str, expected: set[str]
) -> None:
    """What a shell's completion script asks for, and reads."""
    monkeypatch.setenv("_INVERSIGHT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
    assert set(cli.succeeds()[0].split()) == expected


def test_runs_as_a_module() -> None:
    call = [sys.executable, "-m", "inversight", "--version"]
    found = subprocess.run(call, capture_output=True, text=True, check=True)
    assert found.stdout == f"inversight {importlib.metadata.version('inversight')}\n"


def test_printed_configuration_reads_back_the_same(cli: CommandLine) -> None:
    before = sorted(Path.cwd().iterdir())
    out, _ = cli.succeeds(
        "audit --print-config --private p --public q --preset standard",
        "--set adaptation.steps=7 --mean 0.1,0.2,0.3 --seed 5",
    )
    assert sorted(Path.cwd().iterdir()) == before
    values = yaml.safe_load(out)
    assert (values["private"], values["preset"], values["seed"]) == ("p", "standard", 5)
    assert values["adaptation"]["steps"] == 7 and values["mean"] == [0.1, 0.2, 0.3]
    Path("config.yaml").write_text(out)
    again = "audit --print-config --config config.yaml"
    assert cli(again)[1] == out
    # A flag goes before an assignment, which goes before the file.
    changed = cli(again, "--set seed=6 --set limit=3 --seed 8")[1]
    assert yaml.safe_load(changed) == {**values, "seed": 8, "limit": 3}


def test_rejects_overlapping_folders(cli: CommandLine) -> None:
    shutil.copy("private/b/1.png", "public/a/same.png")
    shared = "--private and --public share 1 image(s)"
    cli.refuses(f"{AUDIT} {WEIGHTLESS}", shared, "b/1.png = a/same.png", "--allow-overlap")


def test_weights_list_and_check(cli: CommandLine) -> None:
    assert cli.succeeds("weights check")[0].count("missing") == 4
    cli.succeeds("weights list")
    save(b"x", Path("weights/vgg16.safetensors"))
    cli.refuses("weights check", "vgg16", "import")


# score


def pixels(root: str) -> list[tuple[str, int, list[float]]]:
    """(id, class, grey values) of a folder, scaled so that squares sum to the mean squared error."""
    rows = []
    for file in sorted(Path(root).rglob("*.png")):
        values = np.asarray(Image.open(file), np.float64).ravel() / 255
        name = file.relative_to(root).as_posix()
        rows.append((name, ord(name[0]), list(values / np.sqrt(values.size))))
    return rows


def plain_loop(private: str) -> pd.DataFrame:
    """Return what the plain loop finds for the images in ``private``, as samples.parquet has it."""
    rows = {name: vars(row) for name, row in ddcs_loop(pixels(private), pixels("made")).items()}
    table = pd.DataFrame.from_dict(rows, orient="index")
    names = {"best": "ddcs_best", "average": "ddcs_average", "assigned": "reconstructions"}
    return table.rename(columns=names).rename_axis("id").assign(label=table.index.str[0])


def test_score_equals_a_plain_loop(cli: CommandLine) -> None:
    folder("holdout", 9000, each=2)
    shutil.copy("private/a/2.png", "made/a/0.png")  # an exact hit
    before = sorted(Path.cwd().iterdir())
    printed, _ = cli.succeeds(SCORE, "--features pixel --holdout holdout --out run")
    out = Path("run")
    assert sorted(Path.cwd().iterdir()) == sorted([*before, out.absolute()])
    assert "a/2.png" in printed and "run/report.html" in printed
    samples = pd.read_parquet(out / "samples.parquet").set_index("id")
    held = pd.read_parquet(out / "holdout.parquet").set_index("id")
    expected = plain_loop("private")
    for found, loop in (
        (samples[expected.columns], expected),
        (held[["nearest_distance"]], plain_loop("holdout")[["nearest_distance"]]),
    ):
        pd.testing.assert_frame_equal(
            found.sort_index(),
            loop.sort_index(),
            check_dtype=False,
            check_index_type=False,
            rtol=1e-4,
            atol=1e-12,
        )
    assert samples.index[0] == "a/2.png" and samples["exact_hit"].tolist() == [True] + [False] * 5
    metrics = json.loads((out / "metrics.json").read_text())
    means = {"ddcs_best": expected["ddcs_best"], "covered": expected["reconstructions"] > 0}
    for name, values in means.items():
        assert metrics[name]["value"] == pytest.approx(values.mean(), rel=1e-4)
    assert metrics["fid"]["value"] is None and "inception" in metrics["fid"]["reason"]
    assert "a/2.png" in (out / "report.html").read_text()
    # Once more into the same folder is refused; the report can be written again; runs compare.
    cli.refuses(f"{SCORE} --out run", "another run")
    shown = [out / f for f in ("report.html", "model-card.md", "model-card.json")]
    texts = [file.read_text() for file in shown]
    assert "a/2.png" not in texts[1] + texts[2] and str(out.absolute()) not in texts[1] + texts[2]
    for file in shown:
        file.unlink()
    cli.succeeds("report run")
    assert [file.read_text() for file in shown] == texts
    printed, _ = cli.succeeds("compare run run")
    assert "ddcs_best" in printed.lower().replace(" ", "_")


def test_several_folders_are_scored_as_one(cli: CommandLine) -> None:
    shutil.copytree("public", "other/made")
    cli.succeeds(SCORE, "--reconstructions other/made --out run")
    samples = pd.read_parquet("run/samples.parquet")
    assert samples["reconstructions"].sum() == 12
    assert all(
        re.match(rf"[12]-made/{row.label}/\d\.png", row.nearest_reconstruction)
        for row in samples.itertuples()
    )


def test_a_threshold_on_scores(cli: CommandLine) -> None:
    code, _, err = cli(SCORE, "--out run --fail-on 'covered>=0'")
    assert code == 3 and "--fail-on: covered>=0 (" in err
    assert json.loads(Path("run/run.json").read_text())["finished"]
    assert cli("score --resume run --fail-on 'covered>=0'")[0] == 3
    cli.succeeds("score --resume run --fail-on 'covered<0.0'")


def test_score_refuses_reconstructions_of_another_class(cli: CommandLine) -> None:
    save(picture(1), Path("made/z/0.png"))
    parts = ("z/0.png is of class z", "--private does not have", "rename its folder")
    cli.refuses(f"{SCORE} --out run", *parts)


def test_score_judges_against_the_holdout(cli: CommandLine) -> None:
    folder("holdout", 9000, each=6)
    score = f"{SCORE} --holdout holdout"
    out, _ = cli.succeeds(score, "--out run --fdr 0.2")
    assert "of 6 images flagged at a false-discovery rate of 20 %" in out
    # 6 / (0.2 (12 + 1)), rounded up.
    assert "With 12 holdout images, 3 or more have to stand out together" in out
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["flagged"]["fdr"] == 0.2 and metrics["leakage_gap"]["private_images"] == 6
    samples = pd.read_parquet("run/samples.parquet")
    assert samples["p_value"].between(0, 1).all() and samples["flagged"].notna().all()

    cli.refuses(f"{score} --out x --fdr 0", "fdr", "greater than 0")
    shutil.copy("private/a/2.png", "holdout/a/copy.png")
    cli.refuses(f"{score} --out x", "share 1 image(s)", "a/2.png = a/copy.png")
    cli.succeeds(score, "--out shared --allow-overlap")
    Path("holdout/a/copy.png").unlink()
    shutil.rmtree("holdout/b")
    cli.refuses(f"{score} --out x", "has no images of class b")
    # A class that was not attacked needs none.
    shutil.rmtree("made/b")
    cli.succeeds(score, "--out half")


def test_score_refusals_name_the_folder(cli: CommandLine) -> None:
    Path("empty").mkdir()
    cli.refuses(f"{SCORE} --reconstructions empty --out run", "--reconstructions empty", "is empty")
    broken = Path("made/a/1.png")
    broken.write_bytes(broken.read_bytes()[:60])
    cli.refuses(f"{SCORE} --out run", str(broken), "replace or remove")


# The gate


@pytest.mark.parametrize("crossed", [(), ("flagged>0.05 (0.12)", "covered>=0.5 (0.75)")])
def test_exit_code_3_names_exceeded_thresholds(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, crossed: tuple[str, ...]
) -> None:
    """The command around an audit; the audit itself is tested where it is."""
    run = write_run(Path("run"))
    (run / "metrics_by_set.json").write_text("{}")
    data = load_report_data(run)
    metrics = {key: dict(value) for key, value in data.metrics.items()}
    audit = Mock(return_value=AuditResult(run, metrics, data.samples, (), crossed))
    monkeypatch.setattr("inversight.pipeline.audit.audit", audit)
    code, printed, err = cli("audit --fail-on 'flagged>0.05' --fail-on 'covered>=0.5'")
    assert audit.call_args.kwargs["fail_on"] == ("flagged>0.05", "covered>=0.5")
    assert "Report:" in printed
    line = "inversight: --fail-on: flagged>0.05 (0.12), covered>=0.5 (0.75)\n"
    assert (code, err) == ((3, line) if crossed else (0, ""))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("file", [".metrics.json.partial", ".report.html.partial"])
def test_full_disk_exits_with_1(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Wherever it happens. A file that is written to /dev/full stands for the full disk."""
    create = Run.create

    def create_on_full_disk(path: Path, manifest: dict[str, object]) -> Run:
        run = create(path, manifest)
        (path / file).symlink_to("/dev/full")
        return run

    monkeypatch.setattr(Run, "create", create_on_full_disk)
    complaint = cli.fails(SCORE, "--out run")
    assert "no room on the disk" in complaint and "--resume" in complaint
    Path("run", file).unlink()
    cli.succeeds("score --resume run")


@pytest.mark.parametrize("found", [True, False])
def test_report_opens_in_a_browser_or_says_where_it_is(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: bool
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or found)
    run = write_run(tmp_path / "a run")
    out, err = cli.succeeds(f"report '{run}' --open")
    assert opened == [(run / "report.html").as_uri()] and Path(out.strip()).is_file()
    assert ("no browser" in err) != found
