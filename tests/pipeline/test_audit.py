"""Whole audits, tiny: tables, resume, privacy, parts of one's own, and the Python interface."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from inversight import AuditResult, InputError, audit, resume
from inversight.attacks import ATTACKS, load_latents
from inversight.core.console import Quiet
from inversight.core.errors import RunError
from inversight.core.progress import Progress
from inversight.core.run import Run
from inversight.core.seeding import generator
from inversight.data import load_folder
from inversight.models.networks import load_classifier
from inversight.models.target import Target, target_of
from inversight.pipeline import Plan
from inversight.pipeline.evaluation import METRICS
from inversight.priors import Architecture, StylePrior, train_prior
from inversight.priors.stylegan2 import Discriminator, Generator
from inversight.report import load_report_data, render
from inversight.settings import PriorTraining, resolve
from tests.examples import OwnNetwork, SampleAttack
from tests.pipeline.test_evaluation import COLUMNS, RISK_COLUMNS

OLIVETTI = Path(__file__).parents[3] / "shared" / "data" / "olivetti"
TINY: dict[str, Any] = {
    "embedding": "public",
    "features": "public",
    "guidance_embedding": "public",
    "prior": {"steps": 6, "batch_size": 4, "width": 2, "checkpoint_seconds": 1e-6},
    "adaptation": {"steps": 4, "iterations": 2},
    "target_training": {"epochs": 3, "width": 2},
    "evaluator_training": {"epochs": 3, "width": 2},
    "public_training": {"epochs": 2, "width": 2},
    "attack": [
        {
            "class": "plug-and-play",
            "pool": 30,
            "candidates": 6,
            "keep": 4,
            "steps": 3,
            "crops": 2,
        }
    ],
}
WITH_RISK = [*COLUMNS[:-1], *RISK_COLUMNS, COLUMNS[-1]]
JOINED = [
    "loss", "margin", "entropy", "gradient_norm", "centre_distance", "local_density", "kind", "twins",
]  # fmt: skip
TABLES = ("metrics.json", "samples.parquet", "signals.parquet", "holdout.parquet")


def folder(path: Path, seed: int, classes: tuple[str, ...], each: int, colour: bool) -> Path:
    """Squares at a place that belongs to the class, on noise."""
    rng = np.random.default_rng(seed)
    for position, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for i in range(each):
            values = rng.integers(0, 80, (8, 8, 3) if colour else (8, 8))
            values[2 * position : 2 * position + 3, 2:6] += 150
            Image.fromarray(values.astype(np.uint8)).save(path / name / f"{i}.png")
    return path


@pytest.fixture(params=["grey", "colour"])
def folders(tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Path]:
    return make(tmp_path, request.param == "colour")


@pytest.fixture
def grey(tmp_path: Path) -> dict[str, Path]:
    return make(tmp_path, False)


def make(path: Path, colour: bool) -> dict[str, Path]:
    return {
        "private": folder(path / "private", 0, ("ann", "bob"), 6, colour),
        "holdout": folder(path / "holdout", 1, ("ann", "bob"), 5, colour),
        "public": folder(path / "public", 2, ("x", "y", "z"), 8, colour),
    }


def hashes(run: Path) -> dict[str, str]:
    return {t: hashlib.sha256((run / t).read_bytes()).hexdigest() for t in TABLES}


def test_a_whole_audit(folders: dict[str, Path], tmp_path: Path) -> None:
    result = audit(out=tmp_path / "run", **folders, **TINY)
    assert isinstance(result, AuditResult)
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
        "target", "evaluator", "public-network", "prior", "adaptation",
        "attack-plug-and-play", "reconstructions", "scores", "signals",
    ]  # fmt: skip
    assert not list(run.rglob("*.partial")) and not list(run.rglob("checkpoint*"))
    latents = load_latents(run / "stages" / "attack-plug-and-play")
    assert latents["latents"].shape[0] == 8 and set(latents) == {"latents", "labels", "losses"}


def test_nothing_in_a_run_is_a_pickle(grey: dict[str, Path], tmp_path: Path) -> None:
    run = audit(out=tmp_path / "run", **grey, **TINY).run
    suffixes = {p.suffix for p in run.rglob("*") if p.is_file()}
    assert suffixes == {
        ".json", ".txt", ".md", ".png", ".parquet", ".html", ".safetensors", "",
    }  # fmt: skip
    assert [p.name for p in run.rglob("*") if p.is_file() and not p.suffix] == [".lock"]


def test_the_seed_decides_the_tables(grey: dict[str, Path], tmp_path: Path) -> None:
    one, same, other = (
        audit(out=tmp_path / f"run{i}", seed=seed, **grey, **TINY).run
        for i, seed in enumerate((3, 3, 4))
    )
    assert hashes(one) == hashes(same)
    assert hashes(one) != hashes(other)


class Stop(BaseException):
    """Stands for a kill: nothing catches it."""


@dataclass
class StopAt(Quiet):
    """Stops the audit in a stage, after so many of its steps."""

    name: str
    after: int

    def stage(self, name: str) -> Progress:
        def progress(done: int, total: int, note: str = "") -> None:
            if name == self.name and done >= self.after:
                raise Stop

        return progress


STOPS = [
    ("target", 2),
    ("evaluator", 1),
    ("public-network", 1),
    ("prior", 1),
    ("prior", 4),
    ("adaptation", 3),
    ("plug-and-play", 1),
    ("scores", 1),
]


def test_stopped_anywhere_it_ends_with_the_same_tables(
    grey: dict[str, Path], tmp_path: Path
) -> None:
    expected = hashes(audit(out=tmp_path / "whole", **grey, **TINY).run)
    for i, (name, after) in enumerate(STOPS):
        run = tmp_path / f"stopped-{i}"
        with pytest.raises(Stop):
            audit(out=run, reporter=StopAt(name, after), **grey, **TINY)
        assert not (run / "metrics.json").exists()
        resume(run)
        assert hashes(run) == expected, (name, after)


def test_stopped_in_the_signals_it_ends_with_the_same_tables(
    grey: dict[str, Path], tmp_path: Path
) -> None:
    expected = hashes(audit(out=tmp_path / "whole", **grey, **TINY).run)
    run = tmp_path / "stopped"
    with pytest.raises(Stop):
        audit(out=run, reporter=StopAt("signals", 1), **grey, **TINY)
    assert not (run / "samples.parquet").exists()
    resume(run)
    assert hashes(run) == expected


def test_signals_join_the_ledger_and_change_nothing_in_it(
    grey: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copy(grey["private"] / "ann" / "2.png", grey["private"] / "ann" / "twin.png")
    result = audit(out=tmp_path / "run", **grey, **TINY)
    scored = pd.read_parquet(result.run / "stages" / "scores" / "samples.parquet")
    pd.testing.assert_frame_equal(result.samples[list(scored)], scored)
    samples = result.samples.set_index("id")
    assert samples["twins"].dropna().to_dict() == {
        "ann/2.png": "ann/2.png", "ann/twin.png": "ann/2.png",
    }  # fmt: skip
    assert set(samples["kind"][samples["twins"].notna()]) == {"duplicate"}
    signals = pd.read_parquet(result.run / "signals.parquet").set_index("id").loc[samples.index]
    for name in JOINED:
        assert samples[name].equals(signals[name]), name
    assert signals["neighbour_distance"].gt(0).all()
    target = target_of(load_classifier(result.run / "stages" / "target"), "trained")
    private = load_folder(grey["private"], role="--private")
    loss = torch.nn.functional.cross_entropy(
        target(private.floats()), private.labels, reduction="none"
    )
    assert samples.loc[list(private.ids), "loss"].to_numpy() == pytest.approx(
        loss.numpy(), rel=1e-4
    )
    page = result.report.read_text()
    assert "Kind" in page and "of twins DDCS credits one" in page


def test_a_run_of_before_gains_signals_when_it_is_resumed(
    grey: dict[str, Path], tmp_path: Path
) -> None:
    run = audit(out=tmp_path / "run", **grey, **TINY).run
    expected = hashes(run)
    shutil.rmtree(run / "stages" / "signals")
    (run / "signals.parquet").unlink()
    shutil.copy(run / "stages" / "scores" / "samples.parquet", run / "samples.parquet")
    assert "Kind" not in render(load_report_data(run))
    resume(run)
    assert hashes(run) == expected


def test_resuming_a_finished_run_changes_nothing(grey: dict[str, Path], tmp_path: Path) -> None:
    run = audit(out=tmp_path / "run", **grey, **TINY).run
    before = hashes(run)
    again = resume(run)
    assert hashes(run) == before and again.run == run


def test_resumes_from_another_folder(
    grey: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = own_weights(tmp_path / "w.safetensors").name
    monkeypatch.chdir(tmp_path)
    relative = {name: path.name for name, path in grey.items()}
    target = f"tests.examples:own_network?weights={weights}"
    with pytest.raises(Stop):
        audit(out="run", reporter=StopAt("prior", 1), target=target, **relative, **TINY)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume("../run").metrics["ddcs_best"]["value"] is not None


def test_resume_refuses_changed_images(grey: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Stop):
        audit(out=run, reporter=StopAt("prior", 1), **grey, **TINY)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(grey["private"] / "ann" / "0.png")
    with pytest.raises(RunError, match="private images have changed"):
        resume(run)
    held = Run.open(run)  # refused at once, before images are read and compared
    with pytest.raises(RunError, match="another process is working"):
        resume(run)
    held.close()


def test_no_picture_and_no_name_by_choice(grey: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(grey["private"] / "ann" / "2.png", grey["private"] / "ann" / "twin.png")
    plain = audit(out=tmp_path / "plain", **grey, **TINY)
    assert "data:image/png" not in plain.report.read_text()
    assert "ann/" in plain.report.read_text()
    hidden = audit(out=tmp_path / "hidden", hash_ids=True, **grey, **TINY)
    text = hidden.report.read_text()
    assert "ann/" not in text and "bob/" not in text
    assert str(tmp_path) not in text and str(tmp_path) in plain.report.read_text()
    assert "(hidden)" in text and "images in 2 classes" in text
    assert not set(hidden.samples["id"]) & set(plain.samples["id"])
    names = json.loads((hidden.run / "private-ids.json").read_text())
    assert {names[i] for i in hidden.samples["id"]} == set(plain.samples["id"])
    twins = hidden.samples["twins"].dropna()
    assert [names[i] for i in twins] == ["ann/2.png", "ann/2.png"]
    for file in hidden.run.rglob("*.parquet"):
        table = pd.read_parquet(file)
        assert not table.map(lambda v: isinstance(v, str) and "ann" in v).any(axis=None), file
    assert hidden.samples["nearest_distance"].tolist() == plain.samples["nearest_distance"].tolist()


@pytest.mark.parametrize("images", ["full", "blurred"])
def test_pictures_by_choice(grey: dict[str, Path], tmp_path: Path, images: str) -> None:
    result = audit(out=tmp_path / "run", images=images, **grey, **TINY)
    assert result.report.read_text().count("data:image/png") >= 2


@pytest.mark.parametrize("arm", ["vanilla", "entropy"])
def test_other_arms_share_all_stages_before_the_adaptation(
    grey: dict[str, Path], tmp_path: Path, arm: str
) -> None:
    default = audit(out=tmp_path / "default", **grey, **TINY).run
    other = audit(out=tmp_path / arm, arm=arm, **grey, **TINY).run
    for stage in ("target/target", "evaluator/target", "prior/prior"):
        file = Path("stages") / f"{stage}.safetensors"
        assert (default / file).read_bytes() == (other / file).read_bytes()
    file = Path("stages/adaptation/prior.safetensors")
    assert (default / file).read_bytes() != (other / file).read_bytes()


def test_parts_of_ones_own(grey: dict[str, Path], tmp_path: Path) -> None:
    result = audit(
        out=tmp_path / "run",
        **grey,
        **(
            TINY
            | {
                "prior": {"class": "tests.examples:NoisePrior", "scale": 2.0},
                "attack": [{"class": "tests.examples:SampleAttack", "keep": 2}, *TINY["attack"]],
                "embedding": "tests.examples:HalfMeans",
                "features": "pixel",
            }
        ),
    )
    manifest = json.loads((result.run / "run.json").read_text())
    assert manifest["arm"] == "none (own prior)"
    assert any("without adaptation" in note for note in manifest["notes"])
    names = sorted(p.name for p in (result.run / "reconstructions" / "ann").iterdir())
    assert names == [
        "SampleAttack-0001.png", "SampleAttack-0002.png",
        *(f"plug-and-play-000{i}.png" for i in range(1, 5)),
    ]  # fmt: skip
    assert result.metrics["coverage"]["features"] == "pixel"


def own_weights(path: Path, classes: int = 2) -> Path:
    network = OwnNetwork(classes)
    network.linear.weight.data = torch.randn(
        classes, 64, generator=torch.Generator().manual_seed(1)
    )
    save_file(network.state_dict(), path)
    return path


def test_ones_own_target_and_its_warnings(grey: dict[str, Path], tmp_path: Path) -> None:
    weights = own_weights(tmp_path / "w.safetensors")
    result = audit(
        out=tmp_path / "run",
        target=f"tests.examples:own_network?weights={weights}",
        mean=(0.3,),
        std=(0.2,),
        **{k: v for k, v in grey.items() if k != "holdout"},
        **TINY,
    )
    manifest = json.loads((result.run / "run.json").read_text())
    assert manifest["target"]["mean"] == [0.3]
    assert not (result.run / "stages" / "target").exists()
    assert any("class order (--classes)" in w for w in result.warnings)
    assert any("no holdout was given" in w for w in result.warnings)
    assert result.metrics["flagged"]["reason"].startswith("needs a holdout")


def without_holdout(folders: dict[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in folders.items() if name != "holdout"}


BLACK_BOX = {
    "class": "mirror-black-box", "pool": 30, "population": 6, "generations": 2, "candidates": 4,
    "keep": 3, "crops": 2,
}  # fmt: skip
PLAIN = {**TINY["attack"][0], "halvings": 0}
TWO = {**TINY, "attack": [PLAIN, BLACK_BOX]}


def test_without_a_holdout_there_is_a_control(grey: dict[str, Path], tmp_path: Path) -> None:
    result = audit(out=tmp_path / "run", **without_holdout(grey), **TWO)
    run = result.run
    manifest = json.loads((run / "run.json").read_text())
    assert [s["name"] for s in manifest["stages"]][-4:] == [
        "reconstructions", "control", "scores", "signals",
    ]  # fmt: skip
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
    control = sorted((run / "stages" / "control" / "images").rglob("*.png"))
    assert [p.parent.name for p in control] == ["ann"] * 7 + ["bob"] * 7
    by_set = json.loads((run / "metrics_by_set.json").read_text())
    assert set(by_set) == {"plug-and-play", "mirror-black-box"}
    assert by_set["mirror-black-box"]["control_gap"]["reconstructions"] == 6
    assert not list((run / "reconstructions").rglob("control*"))
    for table in ("samples", "samples_by_set", "reconstructions"):
        assert "control" not in pd.read_parquet(run / f"{table}.parquet").to_csv()
    report = result.report.read_text()
    assert "Gap to the control" in report and "has no p value" in report
    assert "plug-and-play 90, mirror-black-box 66" in report


def test_with_a_holdout_there_is_none(grey: dict[str, Path], tmp_path: Path) -> None:
    result = audit(out=tmp_path / "run", **grey, **TINY)
    assert not (result.run / "stages" / "control").exists()
    assert "holdout" in result.metrics["control_gap"]["reason"]
    assert "Gap to the control:" not in result.report.read_text()


def test_the_control_is_of_the_prior_before_the_adaptation(
    grey: dict[str, Path], tmp_path: Path
) -> None:
    """Neither another arm nor another attack's settings change it."""
    pictures = []
    more = {**TINY["attack"][0], "steps": 1}
    for i, given in enumerate(({}, {"arm": "vanilla"}, {"attack": [more]})):
        run = audit(out=tmp_path / f"run{i}", **without_holdout(grey), **{**TINY, **given}).run
        files = sorted((run / "stages" / "control").rglob("*.png"))
        pictures.append([file.read_bytes() for file in files])
        assert len(files) == 8
    assert pictures[0] == pictures[1] == pictures[2]


@pytest.mark.parametrize("stage", ["control", "mirror-black-box"])
def test_stopped_there_it_ends_the_same(grey: dict[str, Path], tmp_path: Path, stage: str) -> None:
    def files(run: Path) -> list[str]:
        return [(run / f).read_text() for f in ("metrics.json", "metrics_by_set.json")]

    expected = audit(out=tmp_path / "whole", **without_holdout(grey), **TWO).run
    with pytest.raises(Stop):
        audit(out=tmp_path / "run", reporter=StopAt(stage, 1), **without_holdout(grey), **TWO)
    resume(tmp_path / "run")
    assert files(tmp_path / "run") == files(expected)
    one, other = (json.loads((r / "run.json").read_text()) for r in (expected, tmp_path / "run"))
    assert one["queries"] == other["queries"]


def test_an_audit_gives_an_attack_no_more_than_it_names(
    grey: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []

    class Looking(SampleAttack):
        def run(self, target: Target, *args: Any, **named: Any) -> Any:
            x = torch.rand(1, 1, 8, 8, requires_grad=True)
            with torch.enable_grad():
                seen.append((str(target.access), target(x).requires_grad))
            return super().run(target, *args, **named)

    monkeypatch.setattr("tests.examples.SampleAttack", Looking)
    given = {**TINY, "attack": ["tests.examples:SampleAttack"]}
    run = audit(out=tmp_path / "run", **grey, **given).run
    assert seen == [("scores", False)]
    assert json.loads((run / "run.json").read_text())["queries"] == {"SampleAttack": 51}


def test_a_class_order_of_ones_own(grey: dict[str, Path], tmp_path: Path) -> None:
    """The same network with its outputs in another order is the same target."""
    weights = own_weights(tmp_path / "w.safetensors", classes=3)
    order = tmp_path / "classes.txt"
    order.write_text("zoe\nbob\nann\n")
    result = audit(
        out=tmp_path / "run",
        target=f"tests.examples:own_network?weights={weights}",
        classes=order,
        **grey,
        **TINY,
    )
    assert set(result.samples["label"]) == {"ann", "bob"}
    assert sorted(p.name for p in (result.run / "reconstructions").iterdir()) == ["ann", "bob"]


def remove_public(folders: dict[str, Path]) -> dict[str, Any]:
    return {"private": folders["private"]}


def one_class(folders: dict[str, Path]) -> dict[str, Any]:
    return {"private": folders["private"], "public": folders["public"], "limit": 1}


def shared_file(folders: dict[str, Path]) -> dict[str, Any]:
    image = Image.open(folders["private"] / "ann" / "3.png")
    image.save(folders["public"] / "x" / "copy.bmp")  # another name and format, the same pixels
    return {"private": folders["private"], "public": folders["public"]}


def foreign_holdout(folders: dict[str, Path]) -> dict[str, Any]:
    (folders["holdout"] / "bob").rename(folders["holdout"] / "eve")
    return dict(folders)


def missing_holdout(folders: dict[str, Path]) -> dict[str, Any]:
    shutil.rmtree(folders["holdout"] / "bob")
    return dict(folders)


def shared_holdout(folders: dict[str, Path]) -> dict[str, Any]:
    shutil.copy(folders["private"] / "ann" / "3.png", folders["holdout"] / "ann" / "copy.png")
    return dict(folders)


def fail_without_holdout(folders: dict[str, Path]) -> dict[str, Any]:
    return {"private": folders["private"], "public": folders["public"], "fail_on": "flagged>0.05"}


def control_with_holdout(folders: dict[str, Path]) -> dict[str, Any]:
    return {**folders, "fail_on": "control_gap>0"}


def target_of_three(folders: dict[str, Path]) -> dict[str, Any]:
    weights = own_weights(folders["private"].parent / "w.safetensors", classes=3)
    return {**folders, "target": f"tests.examples:own_network?weights={weights}"}


def linear_target(folders: dict[str, Path]) -> dict[str, Any]:
    weights = own_weights(folders["private"].parent / "w.safetensors", classes=2)
    target = f"tests.examples:own_network?weights={weights}"
    return {**folders, "target": target, "arm": "projected"}


def one_attack(name: str, **others: Any) -> Callable[[dict[str, Path]], dict[str, Any]]:
    return lambda folders: {**folders, **others, "attack": [name]}


def no_linear_layer(folders: dict[str, Path]) -> dict[str, Any]:
    return {**folders, "attack": ["lomma"], "target": "tests.examples:own_convolution"}


def conditional_prior(folders: dict[str, Path]) -> dict[str, Any]:
    small = Architecture(size=8, channels=1, z_dim=2, w_dim=2, c_dim=3, channel_max=2)
    file = folders["private"].parent / "prior.safetensors"
    networks = Generator(small), Generator(small), Discriminator(small)
    StylePrior(*networks, PriorTraining(), small.image_shape).save(file)
    return {**folders, "attack": ["gmi"], "prior": str(file), "adaptation": {"steps": 0}}


def too_many_kept(folders: dict[str, Path]) -> dict[str, Any]:
    return {**folders, "attack": [{"class": "plug-and-play", "candidates": 4, "keep": 5}]}


OWN_PRIOR = {"class": "tests.examples:NoisePrior"}


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (one_attack("gmi", prior=OWN_PRIOR), "--attack gmi: needs a prior with a critic"),
        (one_attack("ked-mi", prior=OWN_PRIOR), "--attack ked-mi: needs a prior with a critic"),
        (one_attack("if-gmi", prior=OWN_PRIOR), "--attack if-gmi: needs a prior with intermediate"),
        (no_linear_layer, "--attack lomma: needs the target's penultimate features"),
        (conditional_prior, "--attack gmi: needs a critic that judges an image alone"),
        (
            one_attack("tests.examples:DemandingAttack"),
            "--attack DemandingAttack: needs a prior that sings",
        ),
        (too_many_kept, "--attack plug-and-play: expected keep <= candidates <= pool"),
    ],
)
def test_what_an_attack_will_lack_is_said_before_anything_is_trained(
    grey: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[dict[str, Path]], dict[str, Any]],
    message: str,
) -> None:
    monkeypatch.setattr(Plan, "forecast", lambda _: pytest.fail("went on to the timing"))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        audit(out=tmp_path / "run", **TINY | prepare(grey))
    assert "--attack" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("architecture", ["resnet", "vgg"])
def test_priors_and_targets_trained_here_have_what_every_attack_needs(
    grey: dict[str, Path], architecture: str
) -> None:
    given: dict[str, Any] = {**grey, **TINY, "target_training": {"architecture": architecture}}
    given["adaptation"] = {**TINY["adaptation"], "pseudo_labels_top": 5}
    usual = [name for name in ATTACKS if name != "plg-mi"]
    known = [name for name in ATTACKS if name not in ("gmi", "ked-mi", "lomma")]
    for arm, names in (
        ("pseudo-labels", known),
        ("conditional", known),
        ("target-aware", usual),
        ("projected", usual),
        ("vanilla", usual),
    ):
        plan = Plan.prepare(resolve({**given, "arm": arm, "attack": names}), Quiet())
        assert list(plan.attacks) == names
    trained = train_prior(
        plan.public_for_prior.images,
        training=PriorTraining(steps=1, batch_size=4, width=2),
        rng=generator(0),
    )
    likely = plan.likely_prior
    assert isinstance(likely, StylePrior)
    assert (likely.image_shape, likely.blocks) == (trained.image_shape, trained.blocks)
    assert plan.likely_target.classes == plan.inputs.classes


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (remove_public, "--public is missing"),
        (one_class, "a classifier needs at least two"),
        (shared_file, "ann/3.png = x/copy.bmp"),
        (foreign_holdout, "class eve is not in --private"),
        (missing_holdout, "has no images of class bob"),
        (
            shared_holdout,
            "--private and --holdout share 1 image(s), first ann/3.png = ann/copy.png",
        ),
        (fail_without_holdout, "flagged needs a holdout"),
        (control_with_holdout, "control_gap is of audits without a holdout"),
        (lambda folders: {**folders, "fdr": 1.0}, "fdr: expected less than 1"),
        (lambda folders: {**folders, "fdr": 0.0}, "fdr: expected greater than 0"),
        (target_of_three, "3 outputs, --private has 2 classes"),
        (linear_target, "arm projected needs a target with convolutions"),
    ],
)
def test_wrong_input_writes_nothing(
    grey: dict[str, Path],
    tmp_path: Path,
    prepare: Callable[[dict[str, Path]], dict[str, Any]],
    message: str,
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        audit(out=tmp_path / "run", **prepare(grey), **TINY)
    assert not (tmp_path / "run").exists()


def test_overlap_by_choice_is_a_warning(grey: dict[str, Path], tmp_path: Path) -> None:
    result = audit(out=tmp_path / "run", allow_overlap=True, **shared_file(grey), **TINY)
    assert any("do not measure leakage" in w for w in result.warnings)
    assert "do not measure leakage" in result.report.read_text()


def test_a_threshold_exceeded(grey: dict[str, Path], tmp_path: Path) -> None:
    result = audit(out=tmp_path / "run", fail_on="ddcs_best>0", **grey, **TINY)
    assert result.exceeded
    two = ("covered>1", "ddcs_best<1e9")
    result = audit(out=tmp_path / "run2", fail_on=two, **grey, **TINY)
    assert len(result.crossed) == 1 and result.crossed[0].startswith("ddcs_best<1000000000 (")
    assert resume(tmp_path / "run2").crossed == result.crossed


def test_thresholds_on_flags(grey: dict[str, Path], tmp_path: Path) -> None:
    result = audit(out=tmp_path / "run", fail_on="flagged>0.05", **grey, **TINY)
    assert result.exceeded == (result.metrics["flagged"]["value"] > 0.05)
    again = audit(out=tmp_path / "run2", fail_on="flagged>=0", fdr=0.3, **grey, **TINY)
    assert again.exceeded and again.metrics["flagged"]["fdr"] == 0.3
    card = json.loads((again.run / "model-card.json").read_text())["inversight"]
    assert [a["access"] for a in card["attacks"]] == ["white-box"]
    assert "access: white-box" in (again.run / "model-card.md").read_text()
    assert "false-discovery rate of 30 %" in again.report.read_text()


def test_the_plan_is_told_before_anything_is_written(
    grey: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Listening(Quiet):
        def say(self, text: str) -> None:
            said.append(text)
            assert not (tmp_path / "run").exists()

    audit(out=tmp_path / "run", reporter=Listening(), **grey, **TINY)
    for part in ("12 images in 2 classes", "estimate", "GiB of memory", "natural-gradient"):
        assert part in said[1]


def test_digits_by_default(tmp_path: Path) -> None:
    result = audit(out=tmp_path / "run", **TINY)
    assert len(result.samples) == 100
    manifest = json.loads((result.run / "run.json").read_text())
    assert "handwritten digits" in manifest["split"]
    assert "data:image/png" in result.report.read_text()  # published images are shown


@pytest.mark.skipif(not OLIVETTI.is_dir(), reason=f"no Olivetti faces at {OLIVETTI}")
def test_olivetti_faces(tmp_path: Path) -> None:
    given = {name: OLIVETTI / name for name in ("private", "holdout", "public")}
    small = {
        **TINY,
        "prior": {"steps": 20, "width": 4},
        "adaptation": {"steps": 4, "iterations": 2},
        "evaluator_training": {"epochs": 15},
        "target_training": {"epochs": 15},
    }
    result = audit(out=tmp_path / "run", limit=4, **given, **small)
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
