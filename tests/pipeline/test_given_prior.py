"""A prior made before: imported, adapted, attacked with, and in a whole audit, from the command line."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from inversight import AuditResult, audit, resume
from inversight.core.errors import RunError, StageError
from inversight.core.seeding import generator
from inversight.pipeline.estimate import Estimate
from inversight.priors import StylePrior
from inversight.priors.architecture import Architecture
from tests.command import CommandLine
from tests.pipeline.tiny import (
    SMALL_ATTACK,
    SMALL_PRIOR,
    TINY,
    Stop,
    StopAt,
    hashes,
    image_folders,
    untrained_spec,
)
from tests.priors.stylegan2_files import pickled, published_file, random_prior

SMALL = Architecture(
    size=16,
    channels=1,
    z_dim=4,
    w_dim=4,
    mapping_depth=2,
    channel_base=32,
    channel_max=4,
    group=2,
)
FAST: dict[str, Any] = {
    **{k: v for k, v in TINY.items() if k != "prior"},
    "embedding": "pixel",
    "features": "pixel",
    "arm": "vanilla",
    "adaptation": {"steps": 2, "batch_size": 4},
    "target_training": {"epochs": 1, "width": 2},
    "evaluator_training": {"epochs": 1, "width": 2},
}
PLAN = sys.modules["inversight.pipeline.plan"]
PIXEL = ("--embedding", "pixel", "--features", "pixel", "--guidance-embedding", "pixel")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.chdir(tmp_path)
    return image_folders(tmp_path)


@pytest.fixture
def published(folders: dict[str, Path]) -> StylePrior:
    """The networks in ffhq.pkl, of images twice as large as the folders'."""
    prior = random_prior(SMALL)
    Path("ffhq.pkl").write_bytes(pickled(published_file(prior)))
    return prior


def test_from_a_published_file_to_scores(published: StylePrior, cli: CommandLine) -> None:
    out = cli.succeeds("prior import ffhq.pkl --out ffhq")[0]
    assert "16x16" in out and "ffhq/prior.safetensors" in out and "adapt --prior ffhq" in out
    assert sorted(p.name for p in Path("ffhq").iterdir()) == ["prior.json", "prior.safetensors"]
    facts = json.loads(Path("ffhq/prior.json").read_text())
    assert facts["source"] == "ffhq.pkl" and facts["image_shape"] == [1, 16, 16]
    kept = StylePrior.load(Path("ffhq/prior.safetensors"))
    w = torch.zeros(1, 4)
    assert torch.equal(kept.average(w), published.average(w))

    train = "--set epochs=3 --set width=2"
    cli.succeeds("train --private private --out target", train)
    err = cli.succeeds(
        "adapt --prior ffhq --target target --public public --guidance-embedding pixel",
        "--features none --set steps=2 --set batch_size=4 --set images_at_once=2",
        "--out adapted",
    )[1]
    assert "--public holds 24 images" in err and "a few thousand" in err
    adapted = StylePrior.load(Path("adapted/prior.safetensors"))
    assert adapted.average.architecture == SMALL and adapted.training.batch_size == 4
    assert adapted.training.images_at_once == 2
    assert not torch.equal(adapted(w), kept(w))
    cli.succeeds("attack --prior adapted --target target --out attacked", *SMALL_ATTACK)
    out, err = cli.succeeds(
        "score --private private --reconstructions attacked/reconstructions --embedding pixel",
        "--out scored",
    )
    assert "ddcs_best" in out, err


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No trials before an audit: what they say is not looked at."""
    monkeypatch.setattr(PLAN, "estimate", lambda *_, **__: Estimate({}, 0, 0))


def imported(cli: CommandLine) -> Path:
    cli.succeeds("prior import ffhq.pkl --out ffhq")
    return Path("ffhq")


def test_an_audit_with_a_given_prior(
    published: StylePrior,
    folders: dict[str, Path],
    untimed: None,
    cli: CommandLine,
) -> None:
    given = imported(cli)
    result = audit(out="run", prior=str(given), **folders, **FAST)
    manifest = json.loads((result.run / "run.json").read_text())
    stages = [s["name"] for s in manifest["stages"]]
    assert "prior" in stages and "adaptation" in stages
    copy = result.run / "stages" / "prior" / "prior.safetensors"
    assert copy.read_bytes() == (given / "prior.safetensors").read_bytes()
    assert manifest["inputs"]["prior"]["path"] == "ffhq"
    assert manifest["inputs"]["prior"]["size"] == 16
    assert any("made before: ffhq" in note for note in manifest["notes"])
    assert any("a few thousand" in warning for warning in result.warnings)
    # Networks trained here stay at the private images' size; reconstructions are the prior's.
    assert manifest["target"]["image_shape"] == [1, 8, 8]
    assert Image.open(next((result.run / "reconstructions").rglob("*.png"))).size == (16, 16)
    adapted = StylePrior.load(result.run / "stages" / "adaptation" / "prior.safetensors")
    assert adapted.average.architecture == SMALL
    assert "ffhq" in result.report.read_text()


def test_a_stopped_audit_goes_on_with_the_same_prior(
    published: StylePrior,
    folders: dict[str, Path],
    untimed: None,
    cli: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    imported(cli)
    given = {name: path.name for name, path in folders.items()}
    expected = hashes(audit(out="whole", prior="ffhq", **given, **FAST).run)
    with pytest.raises(Stop):
        audit(out="run", prior="ffhq", reporter=StopAt("adaptation", 1), **given, **FAST)
    before = Path("ffhq/prior.safetensors").read_bytes()
    random_prior(SMALL, seed=1).save(Path("ffhq/prior.safetensors"))
    with pytest.raises(RunError, match="the prior has changed since the run began"):
        resume("run")
    Path("ffhq/prior.safetensors").write_bytes(before)
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert hashes(resume("../run").run) == expected


def test_a_prior_as_it_is(
    published: StylePrior,
    folders: dict[str, Path],
    untimed: None,
    cli: CommandLine,
) -> None:
    imported(cli)
    settings = {**FAST, "adaptation": {"steps": 0}}
    result = audit(out="run", prior="ffhq/prior.safetensors", **folders, **settings)
    manifest = json.loads((result.run / "run.json").read_text())
    assert "adaptation" not in [s["name"] for s in manifest["stages"]]
    assert any("used as it is" in note for note in manifest["notes"])
    assert not any("a few thousand" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("tuning", "missed", "words"),
    [
        (0, 0.0, "most confident (adaptation.pivots): a near"),
        (2, 0.0, "the prior was tuned in 2 steps, after which"),
        (2, 1e9, "the prior draws them well enough untuned"),
    ],
)
def test_a_prior_as_it_is_with_pivots(
    tuning: int,
    missed: float,
    words: str,
    published: StylePrior,
    folders: dict[str, Path],
    cli: CommandLine,
) -> None:
    imported(cli)
    adaptation = {"steps": 0, "pivots": 1, "pivots_steps": 2, "pivots_surer_than": 0.0}
    adaptation |= {"pivots_tuning": tuning}
    settings = {**FAST, "adaptation": {**adaptation, "pivots_missed": missed}}
    settings["attack"] = [{"class": "tests.examples:SampleAttack", "keep": 2}, *FAST["attack"]]
    result = audit(out="run", prior="ffhq/prior.safetensors", **folders, **settings)
    manifest = json.loads((result.run / "run.json").read_text())
    (told,) = (note for note in manifest["notes"] if "public images as well" in note)
    assert words in told
    assert any(
        note.startswith("SampleAttack: the attack itself had no gradients")
        and "no adaptation.pivots" in note
        for note in manifest["notes"]
    )
    adapted = StylePrior.load(result.run / "stages" / "adaptation" / "prior.safetensors")
    before = StylePrior.load(Path("ffhq/prior.safetensors"))
    w = before.sample(2, rng=generator(1))
    assert adapted.pivots is not None
    assert torch.equal(adapted(w), before(w)) is ("was tuned" not in words)


def test_a_prior_without_pivots_since_the_target_is_surer_of_samples(
    published: StylePrior,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    cli: CommandLine,
) -> None:
    imported(cli)
    certain = torch.zeros(8, 2)
    adapting = sys.modules["inversight.adaptation.adapt"]
    monkeypatch.setattr(adapting, "sample_log_probabilities", lambda *given, **options: certain)
    settings = {**FAST, "adaptation": {"steps": 0, "pivots": 1, "pivots_surer_than": 0.5}}
    result = audit(out="run", prior="ffhq/prior.safetensors", **folders, **settings)
    notes = json.loads((result.run / "run.json").read_text())["notes"]
    assert any(
        "samples of the prior alone" in n and "adaptation.pivots_surer_than" in n for n in notes
    )
    assert not any("public images as well" in n for n in notes)


def test_the_announcement_and_the_printed_settings(published: StylePrior, cli: CommandLine) -> None:
    imported(cli)
    attack = "attack=[{class: plug-and-play, pool: 8, candidates: 4, keep: 2, steps: 1, crops: 1}]"
    err = cli.succeeds(
        "audit --private private --public public --prior ffhq",
        *PIXEL,
        f"--set '{attack}' --set adaptation.steps=1 --set adaptation.batch_size=2",
        "--set 'evaluator_training={epochs: 1, width: 2}'",
        "--set 'target_training={epochs: 1, width: 2}' --out run",
    )[1]
    assert "prior      ffhq, 16x16, arm natural-gradient" in err
    assert "prior 0.0 s" in err and "warning: --public holds 24 images" in err
    out = cli.succeeds("audit --print-config --prior ffhq")[0]
    assert "\nprior: ffhq\n" in out


def test_files_that_are_not_imported(published: StylePrior, cli: CommandLine) -> None:
    image = next(Path("private").rglob("*.png"))
    Path("hostile.pkl").write_bytes(b"\x80\x02cposix\nsystem\n\x8c\x09touch ranR.")
    Path("cut.pkl").write_bytes(Path("ffhq.pkl").read_bytes()[:5000])
    for file, parts in (
        ("nowhere.pkl", ("nowhere.pkl", "no such file")),
        (image, ("a PNG image",)),
        ("hostile.pkl", ("asks for posix.system", "nothing in it was run")),
        ("cut.pkl", ("cut.pkl: cut short",)),
    ):
        cli.refuses(f"prior import {file} --out new", *parts)
    cli.refuses("prior import ffhq.pkl --out private", "other files")


COLOUR = replace(SMALL, channels=3)
CLASSES = replace(SMALL, c_dim=3)


def keep(architecture: Architecture, name: str) -> None:
    Path(name).mkdir()
    random_prior(architecture).save(Path(name) / "prior.safetensors")


def test_priors_that_do_not_fit(published: StylePrior, cli: CommandLine) -> None:
    keep(COLOUR, "colour")
    keep(CLASSES, "classes")
    train = "--set epochs=1 --set width=2"
    cli.succeeds("train --private private --out target", train)
    whole = ("audit", "--private", "private", "--public", "public", "--out", "new", *PIXEL)
    colour = ("3 channels (colour)", "1 channel (grey)")
    for arguments, parts in (
        ((*whole, "--prior", "colour"), (*colour, "save the images in colour")),
        ((*whole, "--prior", "classes"), ("conditioned on 3 classes", "adaptation.steps=0")),
        ((*whole, "--prior", "nowhere"), ("--prior nowhere: no such prior",)),
        ((*whole, "--prior", "ffhq.pkl"), ("inversight prior import ffhq.pkl",)),
        ((*whole, "--prior", "classes", "--set", "prior.steps=3"), ("leave one of the two out",)),
        (
            ("adapt", "--prior", "colour", "--target", "target", "--public", "public", "--out",
             "new"),
            (*colour, "those that target takes", "package.module:factory"),
        ),
        (
            ("adapt", "--prior", "classes", "--target", "target", "--public", "public", "--out",
             "new"),
            ("conditioned on 3 classes",),
        ),
        (("attack", "--prior", "colour", "--target", "target", "--out", "new"), colour),
    ):  # fmt: skip
        cli.refuses(arguments, *parts)


def test_a_prior_of_another_size_says_which_size_the_target_needs(
    published: StylePrior, cli: CommandLine
) -> None:
    """A network of one size only; its own file does not say which."""
    imported(cli)
    Path("classes.txt").write_text("ann\nbob\n")
    spec = untrained_spec(Path("own.safetensors"))
    attack = (
        "attack",
        "--prior",
        "ffhq",
        "--target",
        spec,
        "--classes",
        "classes.txt",
        *SMALL_ATTACK,
    )
    cli.refuses([*attack, "--out new"], "16x16", "--size")
    cli.succeeds(*attack, "--size 8 --out new")


# Memory and divergence


def no_memory(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def failed(cli: CommandLine, *arguments: object) -> str:
    code, _, err = cli(*arguments)
    complaints = [line for line in err.splitlines() if line.startswith("inversight: ")]
    assert code == 1 and len(complaints) == 1 and "Traceback" not in err, err
    return complaints[0]


@pytest.mark.parametrize(
    ("patched", "arguments", "parts"),
    [
        ("inversight.priors.train_prior", ("prior", "train", "--public", "public", *SMALL_PRIOR),
         ("prior train: out of memory", "--set images_at_once=2", "goes on from its checkpoint")),
        ("inversight.pipeline.train.train_classifier", ("train", "--private", "private"),
         ("train: out of memory", "--set batch_size=")),
        ("inversight.adaptation.adapt",
         ("adapt", "--prior", "ffhq", "--target", "target", "--public", "public",
          "--guidance-embedding", "pixel", "--features", "none", "--set", "batch_size=6"),
         ("adapt: out of memory", "--set images_at_once=3", "goes on from its checkpoint")),
        ("inversight.attacks.PlugAndPlay.run", ("attack", "--prior", "ffhq", "--target", "target"),
         ("attack: out of memory", "--set batch_size=100")),
    ],
)  # fmt: skip
def test_a_stage_without_memory_says_what_to_lower(
    published: StylePrior,
    cli: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    patched: str,
    arguments: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    imported(cli)
    train = "--set epochs=1 --set width=2"
    cli.succeeds("train --private private --out target", train)
    monkeypatch.setattr(patched, no_memory)
    complaint = failed(cli, *arguments, "--out", "new")
    for part in parts:
        assert part in complaint


def test_an_audit_without_memory_says_what_to_lower_and_keeps_the_rest(
    folders: dict[str, Path], untimed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step() -> AuditResult:
        if Path("run").exists():
            return resume("run")
        return audit(out="run", prior=TINY["prior"], **folders, **FAST)

    for stage, patched, part in (
        (
            "target",
            "inversight.pipeline.train.train_classifier",
            "lower target_training.batch_size",
        ),
        ("prior", "inversight.priors.train_prior", "lower prior.images_at_once"),
        ("adaptation", "inversight.adaptation.adapt", "lower adaptation.images_at_once"),
        ("plug-and-play", "inversight.attacks.PlugAndPlay.run", "batch_size: 20"),
        ("scores", "inversight.pipeline.execution.evaluate", "lower --memory"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(patched, no_memory)
            with pytest.raises(StageError) as caught:
                step()
        message = str(caught.value)
        assert message.startswith(f"{stage}: out of memory") and part in message
        assert "is kept in run" in message and caught.value.exit_code == 1
    assert step().metrics["ddcs_best"]["value"] is not None


def test_timing_without_memory_writes_nothing(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inversight.pipeline.estimate.attack_timer", no_memory)
    with pytest.raises(StageError, match=r"plug-and-play: out of memory.*nothing has been written"):
        audit(out="run", prior=TINY["prior"], **folders, **FAST)
    assert not Path("run").exists()


def test_a_prior_that_diverges_stops_at_its_last_checkpoint(
    folders: dict[str, Path], cli: CommandLine
) -> None:
    settings = (*SMALL_PRIOR, "--set", "steps=40", "--set", "checkpoint_seconds=1e-9")
    command = ("prior", "train", "--public", "public", *settings, "--out", "prior")
    complaint = failed(cli, *command, "--set", "learning_rate=1e20")
    assert "not a number" in complaint and "learning_rate" in complaint
    assert not Path("prior/prior.safetensors").exists()
