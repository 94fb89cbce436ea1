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
from inversight.priors import StylePrior
from inversight.priors.architecture import Architecture
from inversight.priors.prior_file import PRIOR_FILE
from tests.command import CommandLine
from tests.pipeline.tiny import SMALL_ATTACK, SMALL_PRIOR, TINY, Stop, StopAt, hashes, own_target
from tests.priors.stylegan2_files import pickled, published_file, random_prior

SMALL = Architecture(
    size=16, channels=1, z_dim=4, w_dim=4, mapping_depth=2, channel_base=32, channel_max=4, group=2
)
FAST: dict[str, Any] = {
    **{k: v for k, v in TINY.items() if k != "prior"},
    "embedding": "pixel",
    "features": "tests.examples:HalfMeans",
    "arm": "vanilla",
    "adaptation": {"steps": 2, "batch_size": 4},
    "target_training": {"epochs": 1, "width": 2},
    "evaluator_training": {"epochs": 1, "width": 2},
}
PIXEL = "--embedding pixel --features pixel --guidance-embedding pixel"


def keep(architecture: Architecture, folder: Path) -> None:
    """Write a prior with random weights to ``folder``."""
    folder.mkdir()
    random_prior(architecture).save(folder / PRIOR_FILE)


@pytest.fixture(autouse=True)
def prior(here: dict[str, Path]) -> None:
    """A prior in the folder ffhq, of images twice as large as the folders'."""
    keep(SMALL, Path("ffhq"))


@pytest.fixture
def published() -> StylePrior:
    """The networks in ffhq.pkl, which are those of the prior."""
    prior = random_prior(SMALL)
    Path("ffhq.pkl").write_bytes(pickled(published_file(prior)))
    return prior


def test_from_a_published_file_to_scores(
    published: StylePrior, trained: dict[str, Path], cli: CommandLine
) -> None:
    out = cli.succeeds("prior import ffhq.pkl --out imported")[0]
    assert "16x16" in out and f"imported/{PRIOR_FILE}" in out and "adapt --prior imported" in out
    assert sorted(p.name for p in Path("imported").iterdir()) == ["prior.json", PRIOR_FILE]
    facts = json.loads(Path("imported/prior.json").read_text())
    assert facts["source"] == "ffhq.pkl" and facts["image_shape"] == [1, 16, 16]
    kept = StylePrior.load(Path("imported") / PRIOR_FILE)
    w = torch.zeros(1, 4)
    assert torch.equal(kept.average(w), published.average(w))
    err = cli.succeeds(
        "adapt --prior imported --target target --public public --guidance-embedding pixel",
        "--features none --set steps=2 --set batch_size=4 --set images_at_once=2",
        "--out adapted",
    )[1]
    assert "--public holds 24 images" in err and "a few thousand" in err
    adapted = StylePrior.load(Path("adapted") / PRIOR_FILE)
    assert adapted.average.architecture == SMALL and adapted.training.batch_size == 4
    assert adapted.training.images_at_once == 2
    assert not torch.equal(adapted(w), kept(w))
    cli.succeeds("attack --prior adapted --target target --out attacked", SMALL_ATTACK)
    out, err = cli.succeeds(
        "score --private private --reconstructions attacked/reconstructions --embedding pixel",
        "--out scored",
    )
    assert "ddcs_best" in out, err


def audited(folders: dict[str, Path], **changes: Any) -> tuple[AuditResult, dict[str, Any]]:
    """Return the audit FAST with the prior in ffhq, and its manifest."""
    result = audit(out="run", prior=f"ffhq/{PRIOR_FILE}", **folders, **{**FAST, **changes})
    return result, json.loads((result.run / "run.json").read_text())


@pytest.mark.usefixtures("no_trials")
def test_an_audit_with_a_given_prior(
    here: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be stopped and resumed, but not with another prior."""
    result = audit(out="whole", prior="ffhq", **here, **FAST)
    manifest = json.loads((result.run / "run.json").read_text())
    stages = [s["name"] for s in manifest["stages"]]
    assert "prior" in stages and "adaptation" in stages
    before = Path(f"ffhq/{PRIOR_FILE}").read_bytes()
    assert (result.run / "stages" / "prior" / PRIOR_FILE).read_bytes() == before
    assert manifest["inputs"]["prior"]["path"] == "ffhq"
    assert manifest["inputs"]["prior"]["size"] == 16
    assert any("made before: ffhq" in note for note in manifest["notes"])
    assert any("a few thousand" in warning for warning in result.warnings)
    # Networks trained here stay at the private images' size; reconstructions are the prior's.
    assert manifest["target"]["image_shape"] == [1, 8, 8]
    assert Image.open(next((result.run / "reconstructions").rglob("*.png"))).size == (16, 16)
    adapted = StylePrior.load(result.run / "stages" / "adaptation" / PRIOR_FILE)
    assert adapted.average.architecture == SMALL
    assert "ffhq" in result.report.read_text()

    given = {name: path.name for name, path in here.items()}
    with pytest.raises(Stop):
        audit(out="run", prior="ffhq", reporter=StopAt("adaptation", 1), **given, **FAST)
    random_prior(SMALL, seed=1).save(Path(f"ffhq/{PRIOR_FILE}"))
    with pytest.raises(RunError, match="the prior has changed since the run began"):
        resume("run")
    Path(f"ffhq/{PRIOR_FILE}").write_bytes(before)
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert hashes(resume("../run").run) == hashes(here["private"].parent / "whole")


@pytest.mark.usefixtures("no_trials")
def test_an_unchanged_prior(here: dict[str, Path]) -> None:
    result, manifest = audited(here, adaptation={"steps": 0})
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
@pytest.mark.usefixtures("no_trials")
def test_an_unchanged_prior_with_pivots(
    tuning: int, missed: float, words: str, here: dict[str, Path]
) -> None:
    adaptation = {"steps": 0, "pivots": 1, "pivots_steps": 2, "pivots_surer_than": 0.0}
    adaptation |= {"pivots_tuning": tuning, "pivots_missed": missed}
    attack = [{"class": "tests.examples:SampleAttack", "keep": 2}]
    result, manifest = audited(here, adaptation=adaptation, attack=attack)
    (found,) = (note for note in manifest["notes"] if "public images as well" in note)
    assert words in found
    start = "SampleAttack: the attack itself had no gradients"
    assert any(n.startswith(start) and "no adaptation.pivots" in n for n in manifest["notes"])
    adapted = StylePrior.load(result.run / "stages" / "adaptation" / PRIOR_FILE)
    before = StylePrior.load(Path("ffhq") / PRIOR_FILE)
    w = before.sample(2, rng=generator(1))
    assert adapted.pivots is not None
    assert torch.equal(adapted(w), before(w)) is ("was tuned" not in words)


@pytest.mark.usefixtures("no_trials")
def test_no_pivots_where_the_target_is_surer_of_samples(
    here: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    certain = torch.zeros(8, 2)
    adapting = sys.modules["inversight.adaptation.adapt"]
    monkeypatch.setattr(adapting, "sample_log_probabilities", lambda *given, **options: certain)
    notes = audited(here, adaptation={"steps": 0, "pivots": 1, "pivots_surer_than": 0.5})[1][
        "notes"
    ]
    assert any(
        "samples of the prior alone" in n and "adaptation.pivots_surer_than" in n for n in notes
    )
    assert not any("public images as well" in n for n in notes)


def test_the_announcement_and_the_printed_settings(cli: CommandLine) -> None:
    attack = "attack=[{class: plug-and-play, pool: 8, candidates: 4, keep: 2, steps: 1, crops: 1}]"
    err = cli.succeeds(
        "audit --private private --public public --prior ffhq",
        PIXEL,
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


AUDIT = f"audit --private private --public public --out new {PIXEL}"
ADAPT = "adapt --prior ffhq --target target --public public --out new"
ATTACK = "attack --prior ffhq --target target --out new"
CHANNELS = ("3 channels (colour)", "1 channel (grey)")


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (f"{AUDIT} --prior colour", (*CHANNELS, "save the images in colour")),
        (f"{AUDIT} --prior classes", ("conditioned on 3 classes", "adaptation.steps=0")),
        (f"{AUDIT} --prior nowhere", ("--prior nowhere: no such prior",)),
        (f"{AUDIT} --prior ffhq.pkl", ("inversight prior import ffhq.pkl",)),
        (f"{AUDIT} --prior classes --set prior.steps=3", ("leave one of the two out",)),
        (
            f"{ADAPT} --prior colour",
            (*CHANNELS, "those that target takes", "package.module:factory"),
        ),
        (f"{ADAPT} --prior classes", ("conditioned on 3 classes",)),
        (f"{ATTACK} --prior colour", CHANNELS),
    ],
)
@pytest.mark.usefixtures("published", "trained")
def test_priors_that_do_not_fit(cli: CommandLine, command: str, parts: tuple[str, ...]) -> None:
    keep(replace(SMALL, channels=3), Path("colour"))
    keep(replace(SMALL, c_dim=3), Path("classes"))
    cli.refuses(command, *parts)


def test_a_prior_of_another_size_says_which_size_the_target_needs(cli: CommandLine) -> None:
    """A network of one size only; its own file does not say which."""
    Path("classes.txt").write_text("ann\nbob\n")
    attack = f"{ATTACK} --target {own_target(Path())} --classes classes.txt {SMALL_ATTACK}"
    cli.refuses(attack, "16x16", "--size")
    cli.succeeds(attack, "--size 8")


# Memory and divergence


def no_memory(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize(
    ("patched", "command", "parts"),
    [
        ("inversight.priors.train_prior", f"prior train --public public --out new {SMALL_PRIOR}",
         ("prior train: out of memory", "--set images_at_once=2", "goes on from its checkpoint")),
        ("inversight.pipeline.train.train_classifier", "train --private private --out new",
         ("train: out of memory", "--set batch_size=")),
        ("inversight.adaptation.adapt",
         f"{ADAPT} --guidance-embedding pixel --features none --set batch_size=6",
         ("adapt: out of memory", "--set images_at_once=3", "goes on from its checkpoint")),
        ("inversight.attacks.PlugAndPlay.run", ATTACK,
         ("attack: out of memory", "--set batch_size=100")),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("trained")
def test_a_stage_without_memory_says_what_to_lower(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, patched: str, command: str,
    parts: tuple[str, ...],
) -> None:  # fmt: skip
    monkeypatch.setattr(patched, no_memory)
    message = cli.fails(command)
    assert all(part in message for part in parts)


@pytest.mark.usefixtures("no_trials")
def test_an_audit_without_memory_says_what_to_lower_and_keeps_the_rest(
    here: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step() -> AuditResult:
        if Path("run").exists():
            return resume("run")
        return audit(out="run", prior=TINY["prior"], **here, **FAST)

    for stage, patched, part in (
        ("target", "pipeline.train.train_classifier", "lower target_training.batch_size"),
        ("prior", "priors.train_prior", "lower prior.images_at_once"),
        ("adaptation", "adaptation.adapt", "lower adaptation.images_at_once"),
        ("plug-and-play", "attacks.PlugAndPlay.run", "batch_size: 20"),
        ("scores", "pipeline.execution.evaluate", "lower --memory"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"inversight.{patched}", no_memory)
            with pytest.raises(StageError) as caught:
                step()
        message = str(caught.value)
        assert message.startswith(f"{stage}: out of memory") and part in message
        assert "is kept in run" in message and caught.value.exit_code == 1
    assert step().metrics["ddcs_best"]["value"] is not None


def test_timing_without_memory_writes_nothing(
    here: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inversight.pipeline.estimate.attack_timer", no_memory)
    with pytest.raises(StageError, match=r"plug-and-play: out of memory.*nothing has been written"):
        audit(out="run", prior=TINY["prior"], **here, **FAST)
    assert not Path("run").exists()
