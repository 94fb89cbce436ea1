"""The command line: one line for whatever is wrong, nothing written, and ``score`` from end to end."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from inversight import AuditResult
from inversight.core.config import is_settings, settings_fields
from inversight.core.run import Run
from inversight.settings import AuditSettings
from tests.command import CommandLine
from tests.reference.ddcs_loop import ddcs_loop

WEIGHTLESS = "--embedding pixel --features pixel --guidance-embedding pixel"


def image(file: Path, seed: int, size: int = 8) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size, size)).astype(np.uint8)
    Image.fromarray(values).save(file)
    return file


def folder(path: Path, first: int, classes: str = "ab", each: int = 3) -> Path:
    """``each`` noise images of each class, from seed ``first`` on."""
    for i, name in enumerate(classes):
        for k in range(each):
            image(path / name / f"{k}.png", first + 100 * i + k)
    return path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and no published weights."""
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setenv("INVERSIGHT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    return tmp_path / "home"


# The command line itself


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("audit --presett quick", ("--presett", "did you mean --preset?")),
        ("audti", ("audti", "did you mean audit?")),
        ("weights imprt x", ("imprt", "did you mean import?")),
        ("audit --preset quik", ("quik", "did you mean quick?")),
        ("audit --seed many", ("--seed", "integer")),
        ("audit --arm natural", ("--arm natural", "did you mean natural-gradient?")),
        ("audit --mean '0.5;0.5'", ("--mean 0.5;0.5", "commas")),
        ("audit --set prior.stps=5", ("stps", "did you mean steps?")),
        ("audit --set prior", ("--set prior", "NAME=VALUE")),
        ("audit --embedding lpips-vg", ("lpips-vg", "did you mean lpips-vgg?")),
        ("audit --attack plug-and-pray", ("plug-and-pray", "did you mean plug-and-play?")),
        ("audit --fail-on 'coverge>1'", ("coverge", "did you mean coverage?")),
        ("audit --fail-on 'xyz>1'", ("no metric is called xyz", "flagged")),
        ("audit --fail-on 'covered>1' --fail-on 'flag>0'", ("flag>0", "flagged?")),
        ("audit --fail-on 'flagged>5'", ("flagged>5", "a share from 0 to 1")),
        ("audit --fail-on ''", ("--fail-on", "METRIC>NUMBER")),
        ("audit --fdr 1.5", ("fdr", "less than 1")),
        ("audit --fdr -0.1", ("fdr", "greater than 0")),
        (
            "audit --embedding evaluator --fail-on 'flagged>0'",
            ("give --embedding pixel",),
        ),
        ("audit --device gpu9", ("gpu9",)),
        ("audit --config none.yaml", ("--config none.yaml", "cannot be read")),
        ("audit --private nowhere", ("--public is missing",)),
        (
            f"audit --private nowhere --public x {WEIGHTLESS}",
            ("--private nowhere", "no such folder"),
        ),
        ("audit --resume nowhere", ("nowhere", "not a run folder")),
        ("audit --resume nowhere --seed 1", ("--resume", "leave the others out")),
        ("score --private p", ("--reconstructions",)),
        ("report nowhere", ("nowhere", "run")),
        ("triage", ("--private is missing", "give RUN")),
        ("triage nowhere", ("nowhere", "not a run folder")),
        ("triage nowhere --private x", ("leave --private out",)),
        ("triage --private x --out o", ("--target is missing",)),
        ("triage --private x --target t", ("--out is missing",)),
        (
            "triage --private nowhere --target t --out o",
            ("--private nowhere", "no such folder"),
        ),
        (
            "triage --private x --target t --out o --learn nowhere",
            ("nowhere", "not a run folder"),
        ),
        ("compare nowhere elsewhere", ("nowhere",)),
        ("weights import nowhere.pth", ("nowhere.pth", "no such file")),
        ("train --private nowhere --out t", ("nowhere", "no such folder")),
        ("prior train --public nowhere --out t", ("nowhere", "no such folder")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_command_lines(cli: CommandLine, line: str, parts: tuple[str, ...]) -> None:
    cli.refuses(line, *parts)


def test_version_and_help(cli: CommandLine) -> None:
    code, out, err = cli("--version")
    assert (code, out, err) == (0, f"inversight {importlib.metadata.version('inversight')}\n", "")
    out = cli.succeeds("audit --help")[0]
    assert "--private" in out and "--fail-on" in out


def test_printed_configuration_reads_back_the_same(
    cli: CommandLine, tmp_path: Path, home: Path
) -> None:
    code, out, _ = cli(
        "audit --print-config --private p --public q --preset standard",
        "--set adaptation.steps=7 --mean 0.1,0.2,0.3 --seed 5",
    )
    values = yaml.safe_load(out)
    assert code == 0
    assert (values["private"], values["preset"], values["seed"]) == ("p", "standard", 5)
    assert values["adaptation"]["steps"] == 7 and values["mean"] == [0.1, 0.2, 0.3]
    file = tmp_path / "config.yaml"
    file.write_text(out)
    assert cli(f"audit --print-config --config {file}")[1] == out
    # A flag goes before an assignment, which goes before the file.
    changed = "--set seed=6 --set limit=3 --seed 8"
    again = cli(f"audit --print-config --config {file}", changed)[1]
    assert yaml.safe_load(again) == {**values, "seed": 8, "limit": 3}
    assert not list(home.iterdir())


def test_every_setting_is_an_option_or_has_settings_of_its_own(
    cli: CommandLine,
) -> None:
    out = cli("audit --help")[1]
    for name, field in settings_fields(AuditSettings).items():
        assert (f"--{name.replace('_', '-')} " in out) != is_settings(field.annotation)


def test_settings_of_a_part_that_an_option_names(cli: CommandLine) -> None:
    """They change it, and the preset stays below them."""
    out = cli.succeeds(
        "audit --print-config --preset thorough --prior style --set prior.width=8",
        "--attack gmi --set attack.keep=7",
    )[0]
    values = yaml.safe_load(out)
    assert (values["prior"]["steps"], values["prior"]["width"]) == (60000, 8)
    (attack,) = values["attack"]
    assert (attack["class"], attack["keep"], attack["candidates"]) == ("gmi", 7, 200)
    cli.refuses("audit --prior run --set prior.steps=5", "prior.steps", "prior is run")


def test_resume_of_something_else(cli: CommandLine, tmp_path: Path) -> None:
    other = folder(tmp_path / "other", 0)
    cli.refuses(f"audit --resume {other}", str(other), "not a run folder")
    (other / "run.json").write_text("{")
    cli.refuses(f"audit --resume {other}", "run.json", "cannot be read")
    (other / "run.json").write_text("{}")
    cli.refuses(f"audit --resume {other}", "run.json", "not written by inversight")


def test_out_that_holds_something(cli: CommandLine, tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "notes.txt").write_text("mine")
    cli.refuses(f"audit --out {used}", f"--out {used}", "other files")
    (used / "run.json").write_text("{}")
    cli.refuses(f"audit --out {used}", "another run", f"--resume {used}")
    assert sorted(p.name for p in used.iterdir()) == ["notes.txt", "run.json"]
    cli.refuses(f"audit --out {used / 'notes.txt'}", "found a file")


def test_overlapping_folders_are_refused(cli: CommandLine, tmp_path: Path) -> None:
    private, public = folder(tmp_path / "private", 0), folder(tmp_path / "public", 1000)
    image(public / "a" / "same.png", 101)  # private b/1.png
    out = tmp_path / "run"
    cli.refuses(
        f"audit --private {private} --public {public} --out {out} {WEIGHTLESS}",
        "--private and --public share 1 image(s)",
        "b/1.png = a/same.png",
        "--allow-overlap",
    )
    assert not out.exists()


def test_missing_perceptual_weights_say_how_to_get_them(cli: CommandLine, tmp_path: Path) -> None:
    private, public = folder(tmp_path / "private", 0), folder(tmp_path / "public", 1000)
    out = tmp_path / "run"
    parts = ("lpips-vgg", "vgg16-397923af.pth", "inversight weights import", "public or pixel")
    cli.refuses(f"audit --private {private} --public {public} --out {out}", *parts)
    cli.refuses(f"audit --pairs dists --out {out}", parts[1], parts[2])
    cli.refuses(f"score --private {private} --reconstructions {public} --out {out}", *parts)
    assert not out.exists()


def test_weights_list_and_check(cli: CommandLine, tmp_path: Path) -> None:
    out = cli.succeeds("weights check")[0]
    assert out.count("missing") == 4
    cli.succeeds("weights list")
    kept = tmp_path / "weights"
    kept.mkdir()
    (kept / "vgg16.safetensors").write_bytes(b"x")
    cli.refuses("weights check", "vgg16", "import")


# score


def pixels(root: Path) -> list[tuple[str, int, list[float]]]:
    """(id, class, grey values) of a folder, scaled so that squares sum to the mean squared error."""
    rows = []
    for file in sorted(root.rglob("*.png")):
        values = np.asarray(Image.open(file), np.float64).ravel() / 255
        name = file.relative_to(root).as_posix()
        rows.append((name, ord(name[0]), list(values / np.sqrt(values.size))))
    return rows


def test_score_equals_a_plain_loop(cli: CommandLine, tmp_path: Path, home: Path) -> None:
    private = folder(tmp_path / "private", 0, each=4)
    made = folder(tmp_path / "made", 5000, each=6)
    holdout = folder(tmp_path / "holdout", 9000, each=2)
    # An exact hit for a/2.png.
    (made / "a" / "0.png").write_bytes((private / "a" / "2.png").read_bytes())
    out = tmp_path / "run"
    printed = cli.succeeds(
        f"score --private {private} --reconstructions {made} --holdout {holdout} --out {out}",
        "--embedding pixel --features pixel",
    )[0]
    assert "a/2.png" in printed and str(out / "report.html") in printed
    samples = pd.read_parquet(out / "samples.parquet").set_index("id")
    expected = ddcs_loop(pixels(private), pixels(made))
    assert set(samples.index) == set(expected)
    for name, row in expected.items():
        found = samples.loc[name]
        assert found["label"] == name[0]
        assert found["ddcs_best"] == pytest.approx(row.best, rel=1e-4)
        assert found["ddcs_average"] == pytest.approx(row.average, rel=1e-4)
        assert found["reconstructions"] == row.assigned
        assert found["nearest_distance"] == pytest.approx(row.nearest_distance, rel=1e-4, abs=1e-12)
        assert found["nearest_reconstruction"] == row.nearest_reconstruction
    assert samples["exact_hit"].sum() == 1 and bool(samples.loc["a/2.png", "exact_hit"])
    assert samples.index[0] == "a/2.png"
    metrics = json.loads((out / "metrics.json").read_text())
    best = np.mean([row.best for row in expected.values()])
    assert metrics["ddcs_best"]["value"] == pytest.approx(best, rel=1e-4)
    covered = np.mean([row.assigned > 0 for row in expected.values()])
    assert metrics["covered"]["value"] == pytest.approx(covered)
    assert metrics["fid"]["value"] is None and "inception" in metrics["fid"]["reason"]
    held = pd.read_parquet(out / "holdout.parquet").set_index("id")["nearest_distance"]
    for name, row in ddcs_loop(pixels(holdout), pixels(made)).items():
        assert held[name] == pytest.approx(row.nearest_distance, rel=1e-4)
    assert "a/2.png" in (out / "report.html").read_text()
    assert not list(home.iterdir())
    # Once more into the same folder is refused; the report can be written again; runs compare.
    again = f"score --private {private} --reconstructions {made} --out {out}"
    cli.refuses(again, "another run")
    shown = [out / f for f in ("report.html", "model-card.md", "model-card.json")]
    before = [file.read_text() for file in shown]
    assert "a/2.png" not in before[1] + before[2] and str(out) not in before[1] + before[2]
    for file in shown:
        file.unlink()
    cli.succeeds(f"report {out}")
    assert [file.read_text() for file in shown] == before
    printed = cli.succeeds(f"compare {out} {out}")[0]
    assert "ddcs_best" in printed.lower().replace(" ", "_")


def test_several_folders_are_scored_as_one(cli: CommandLine, tmp_path: Path) -> None:
    private = folder(tmp_path / "private", 0)
    first, second = folder(tmp_path / "x" / "made", 5000), folder(tmp_path / "y" / "made", 6000)
    cli.succeeds(
        f"score --private {private} --reconstructions {first} --reconstructions {second}",
        f"--out {tmp_path / 'run'} --embedding pixel",
    )
    samples = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    assert samples["reconstructions"].sum() == 12
    assert all(
        re.match(rf"[12]-made/{row.label}/\d\.png", row.nearest_reconstruction)
        for row in samples.itertuples()
    )


def test_a_threshold_on_scores(cli: CommandLine, tmp_path: Path) -> None:
    private, made = folder(tmp_path / "private", 0), folder(tmp_path / "made", 5000)
    given = f"score --private {private} --reconstructions {made} --embedding pixel"
    out = tmp_path / "run"
    for text, why in (("flagged>0", "needs a holdout"), ("control_gap>0", "of audits alone")):
        cli.refuses(f"{given} --out {out} --fail-on '{text}'", why)
    assert not out.exists()
    code, _, err = cli(given, f"--out {out} --fail-on 'covered>=0'")
    assert code == 3 and "--fail-on: covered>=0 (" in err
    assert json.loads((out / "run.json").read_text())["finished"]
    code, _, err = cli(f"score --resume {out} --fail-on 'covered>=0'")
    assert code == 3
    cli.succeeds(given, f"--out {tmp_path / 'other'} --fail-on 'covered<0.0'")


def test_score_refuses_reconstructions_of_another_class(cli: CommandLine, tmp_path: Path) -> None:
    private, made = folder(tmp_path / "private", 0), folder(tmp_path / "made", 5000, "abz")
    out = tmp_path / "run"
    cli.refuses(
        f"score --private {private} --reconstructions {made} --out {out} --embedding pixel",
        "z/0.png is of class z",
        "--private does not have",
        "rename its folder",
    )
    assert not out.exists()


def test_score_judges_against_the_holdout(cli: CommandLine, tmp_path: Path) -> None:
    private, holdout = folder(tmp_path / "private", 0), folder(tmp_path / "holdout", 9000, each=6)
    made = folder(tmp_path / "made", 5000)
    score = (
        f"score --private {private} --reconstructions {made} --holdout {holdout} --embedding pixel"
    )
    out = cli.succeeds(score, f"--out {tmp_path / 'run'} --fdr 0.2")[0]
    assert "of 6 images flagged at a false-discovery rate of 20 %" in out
    # 6 / (0.2 (12 + 1)), rounded up.
    assert "With 12 holdout images, 3 or more have to stand out together" in out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["flagged"]["fdr"] == 0.2 and metrics["leakage_gap"]["private_images"] == 6
    samples = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    assert samples["p_value"].between(0, 1).all() and samples["flagged"].notna().all()

    cli.refuses(f"{score} --out {tmp_path / 'x'} --fdr 0", "fdr", "between 0 and 1")
    copy = holdout / "a" / "copy.png"
    copy.write_bytes((private / "a" / "2.png").read_bytes())
    cli.refuses(f"{score} --out {tmp_path / 'x'}", "share 1 image(s)", "a/2.png = a/copy.png")
    cli.succeeds(score, f"--out {tmp_path / 'shared'} --allow-overlap")
    copy.unlink()
    shutil.rmtree(holdout / "b")
    cli.refuses(f"{score} --out {tmp_path / 'x'}", "has no images of class b")
    # A class that was not attacked needs none.
    shutil.rmtree(made / "b")
    cli.succeeds(score, f"--out {tmp_path / 'half'}")
    assert not (tmp_path / "x").exists()


def test_score_refusals_name_the_folder(cli: CommandLine, tmp_path: Path) -> None:
    private, made = folder(tmp_path / "private", 0), folder(tmp_path / "made", 5000)
    base = f"score --private {private} --out {tmp_path / 'run'}"
    full = f"{base} --reconstructions {made} --embedding"
    cli.refuses(f"{full} pixl", "--embedding pixl", "did you mean pixel?")
    cli.refuses(f"{full} public", "needs --public")
    cli.refuses(f"{full} evaluator", "needs --evaluator")
    empty = tmp_path / "empty"
    empty.mkdir()
    cli.refuses(
        f"{base} --reconstructions {empty} --embedding pixel",
        f"--reconstructions {empty}",
        "is empty",
    )
    broken = made / "a" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    cli.refuses(f"{full} pixel", str(broken), "replace or remove")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_out_without_permission(cli: CommandLine, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    cli.refuses(f"audit --out {locked / 'run'}", "no permission")


# The gate


@pytest.mark.parametrize("crossed", [(), ("flagged>0.05 (0.12)", "covered>=0.5 (0.75)")])
def test_exit_code_3_comes_with_a_line_that_names_what_was_exceeded(
    cli: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    crossed: tuple[str, ...],
) -> None:
    """The command around an audit; the audit itself is tested where it is."""
    private, made = folder(tmp_path / "private", 0), folder(tmp_path / "made", 5000)
    out = tmp_path / "run"
    asked: dict[str, object] = {}

    def audit(**given: object) -> AuditResult:
        asked.update(given)
        metrics = json.loads((out / "metrics.json").read_text())
        samples = pd.read_parquet(out / "samples.parquet")
        return AuditResult(out, metrics, samples, (), crossed)

    cli.succeeds(
        f"score --private {private} --reconstructions {made} --embedding pixel --out {out}"
    )
    monkeypatch.setattr("inversight.pipeline.audit.audit", audit)
    gates = "--fail-on 'flagged>0.05' --fail-on 'covered>=0.5'"
    code, printed, err = cli("audit", gates)
    assert asked["fail_on"] == ("flagged>0.05", "covered>=0.5")
    assert "Report:" in printed
    line = "inversight: --fail-on: flagged>0.05 (0.12), covered>=0.5 (0.75)\n"
    assert (code, err) == ((3, line) if crossed else (0, ""))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("defend nowhere --defence removal", "not a run folder"),
        ("defend nowhere", "--defence is missing"),
        ("defend nowhere --defence remval", "did you mean removal?"),
        ("defend nowhere --defence mid --set mib.weight=1", "did you mean mid?"),
        ("defend nowhere --defence mid --set mid.wieght=1", "mean weight?"),
        ("defend nowhere --defence mid --protect 1.5", "--protect"),
        ("defend nowhere --defence mid --seeds 0", "--seeds"),
        ("defend nowhere --defense mid", "did you mean --defence?"),
    ],
)
def test_defend_refuses_in_one_line(cli: CommandLine, line: str, message: str) -> None:
    cli.refuses(line, message)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("file", [".metrics.json.partial", ".report.html.partial"])
def test_a_disk_that_fills_up_is_exit_code_1(
    cli: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
) -> None:
    """Wherever it happens. A file that is written to /dev/full stands for the full disk."""
    private, made = folder(tmp_path / "private", 0), folder(tmp_path / "made", 5000)
    out = tmp_path / "run"
    create = Run.create

    def create_on_full_disk(path: Path, manifest: dict[str, object]) -> Run:
        run = create(path, manifest)
        (out / file).symlink_to("/dev/full")
        return run

    monkeypatch.setattr(Run, "create", create_on_full_disk)
    code, _, err = cli(
        f"score --private {private} --reconstructions {made} --embedding pixel --out {out}"
    )
    complaint = [line for line in err.splitlines() if line.startswith("inversight: ")]
    assert code == 1 and len(complaint) == 1 and "Traceback" not in err
    assert "no room on the disk" in complaint[0] and "--resume" in complaint[0]
    (out / file).unlink()
    cli.succeeds(f"score --resume {out}")
