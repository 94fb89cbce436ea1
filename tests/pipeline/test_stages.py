"""Single stages on the command line, each reading what the one before it wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import pandas as pd
import pytest
import torch

from inversight.attacks import load_latents
from inversight.core.console import Quiet, Terminal
from inversight.core.errors import ConfigError
from inversight.models.spec import ModelSpec
from inversight.pipeline.attack import attack
from inversight.pipeline.context import Context
from inversight.priors import StylePrior
from tests.command import CommandLine
from tests.pipeline.tiny import SMALL_ATTACK, SMALL_PRIOR, SMALL_TRAINING, own_target
from tests.priors.tiny import one_of
from tests.two_processes import commands


def written(folder: Path | str) -> StylePrior:
    """Return the prior that a command wrote to ``folder``."""
    return StylePrior.load(Path(folder) / "prior.safetensors")


def read(file: Path | str) -> Any:
    return json.loads(Path(file).read_text())


def interrupted(*_: object, **__: object) -> NoReturn:
    """What a stage does when Ctrl-C is pressed."""
    raise KeyboardInterrupt


def test_from_training_to_scores(trained: dict[str, Path], cli: CommandLine) -> None:
    code, out, _ = cli(
        "adapt --prior prior --target target --public public --guidance-embedding pixel",
        "--features pixel --set steps=2 --set iterations=2 --out adapted",
    )
    assert (code, out) == (0, "adapted/prior.safetensors\n")
    before, after, w = written("prior"), written("adapted"), torch.zeros(1, 64)
    assert not torch.equal(before(w), after(w))
    assert "entropy" in after.log[-1]

    out = cli.succeeds("attack --prior adapted --target target --out attacked", SMALL_ATTACK)[0]
    assert "inversight score --reconstructions attacked/reconstructions" in out
    assert load_latents(Path("attacked"))["labels"].tolist() == [0, 0, 0, 1, 1, 1]
    assert read("attacked/facts.json")["queries"] > 0
    names = sorted(p.relative_to("attacked").as_posix() for p in Path("attacked").rglob("*.png"))
    assert names == [
        f"reconstructions/{c}/plug-and-play-000{i}.png" for c in ("ann", "bob") for i in (1, 2, 3)
    ]

    out = cli.succeeds(
        "score --private private --holdout holdout --reconstructions attacked/reconstructions",
        "--embedding pixel --evaluator target --out scored",
    )[0]
    assert "ddcs_best" in out and "Report: scored/report.html" in out
    assert len(pd.read_parquet("scored/samples.parquet")) == 12
    assert read("scored/metrics.json")["accuracy_top1"]["value"] is not None


@pytest.mark.parametrize(
    ("name", "settings", "queries"),
    [
        ("mirror-black-box", "--set population=5 --set candidates=4", 20 + 2 * 3 * 4 + 16),
        ("cma-es", "--set searches=4 --set population=4", 20 + 2 * 4 * 3 * 4 + 16),
    ],
)
def test_black_box_attacks(
    trained: dict[str, Path], cli: CommandLine, name: str, settings: str, queries: int
) -> None:
    command = f"attack --prior prior --target target --attack {name}"
    small = "--set pool=20 --set keep=3 --set crops=2 --set generations=3"
    err = cli.succeeds(command, "--out new", small, settings)[1]
    assert f"{name}: {queries} images sent to the target, scores access" in err
    assert read("new/facts.json") == {"queries": queries, "left_out": None}
    assert len(list(Path("new/reconstructions").rglob(f"{name}-*.png"))) == 6
    message = cli.fails(command, "--out low --set most_queries=30")
    assert "limit of 30 queries is spent" in message
    assert not Path("low").exists()


def test_the_arms(trained: dict[str, Path], cli: CommandLine) -> None:
    logs = {}
    arms = (
        "vanilla", "entropy", "natural-gradient", "projected", "diverse", "conditional",
        "pseudo-labels", "target-aware",
    )  # fmt: skip
    for arm in arms:
        cli.succeeds(
            f"adapt --prior prior --target target --public public --arm {arm}",
            "--guidance-embedding public --features none --set steps=2 --set pseudo_labels_top=3",
            f"--set conditional_top=3 --out {arm}",
        )
        logs[arm] = written(arm).log[-1]
    assert "entropy" not in logs["vanilla"]
    assert "entropy" in logs["entropy"] and "cosine" not in logs["entropy"]
    assert logs["natural-gradient"]["cosine"] < 0.999
    assert {"projected", "second_discriminator"} <= logs["projected"].keys()
    assert {"projected", "second_discriminator", "spread"} <= logs["diverse"].keys()
    assert {"projected", "second_discriminator", "spread"} <= logs["conditional"].keys()
    assert "spread" not in logs["projected"]
    assert "margin" in logs["pseudo-labels"] and "critic_entropy" in logs["target-aware"]
    err = cli.succeeds(
        "adapt --prior prior --target target --public public --arm vanilla --features none",
        "--set steps=1 --set pivots=2 --set pivots_steps=2 --set pivots_surer_than=0",
        "--out pivoted",
    )[1]
    assert "public images as well" in err and written("pivoted").pivots is not None
    attack = f"attack --target target --attack plg-mi --set crops=2 {SMALL_ATTACK}"
    cli.succeeds(attack, "--prior pseudo-labels --out plain")
    cli.refuses(f"{attack} --prior vanilla --out refused", "--arm pseudo-labels")


def test_training_is_watched(
    here: dict[str, Path], cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a public network that later commands find again."""
    stages: list[str] = []

    def noting(self: Terminal, name: str) -> object:
        stages.append(name)
        return lambda done, total, note="": None

    monkeypatch.setattr(Terminal, "stage", noting)
    cli.succeeds("train --private private --out target", SMALL_TRAINING)
    cli.succeeds(
        "prior train --public public --out prior",
        SMALL_PRIOR,
        "--features public --set watch_images=8",
    )
    assert stages[-3:] == ["reading public", "public-network", "prior"]
    rows = read("prior/progress.json")
    assert [row["images"] for row in rows] == [0, 8, 16]
    assert all(row["frechet"] > 0 for row in rows)
    names = sorted(p.name for p in Path("prior/samples").iterdir())
    assert names == [f"images-{n:09d}.png" for n in (0, 8, 16)]

    cli.succeeds(
        "adapt --prior prior --target target --public public --arm entropy --set steps=2",
        "--out adapted",
    )
    assert stages[-2:] == ["reading public", "adaptation"]  # the prior's network was there
    before, after = read("adapted/progress.json")
    assert before["frechet"] == pytest.approx(rows[-1]["frechet"])
    assert "objective" not in before and "frechet" in after
    cli.succeeds(
        "score --private private --reconstructions holdout --embedding public",
        "--network adapted/public-network --out scored",
    )


def test_a_training_resumes_only_with_the_same_settings(
    here: dict[str, Path], cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"prior train --public public --out prior {SMALL_PRIOR}"
    with monkeypatch.context() as patch:
        patch.setattr("inversight.priors.train_prior", interrupted)
        code, _, err = cli(command)
    assert code == 130 and "continue with: prior train again" in err
    cli.refuses(f"{command} --seed 1", "a training began there and --seed differed")
    shutil.copytree("public", "public/again")
    cli.refuses(command, "the public images differed")
    shutil.rmtree("public/again")
    cli.succeeds(command)
    cli.refuses(command, "holds other files")


def test_published_settings_are_laid_below_what_is_given(
    here: dict[str, Path], cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = mock.Mock(side_effect=interrupted)
    monkeypatch.setattr("inversight.priors.train_prior", training)
    cli("prior train --public public --out prior --features none --set config=cifar --set r1=0.5")
    found = training.call_args.kwargs["training"]
    assert (found.ema_images, found.r1, found.penalty_steps) == (500e3, 0.5, True)


def outputs(folder: Path, command: str) -> list[str]:
    """Return exit code and standard output of both processes."""
    return [(folder / f"{command}-{i}.txt").read_text() for i in range(2)]


def test_two_processes_write_one_prior(
    two_processes: Path, tmp_path: Path, cli: CommandLine
) -> None:
    assert outputs(two_processes, "prior") == ["0\nprior/prior.safetensors\n", "0\n"]
    line = commands(two_processes)["prior"]
    cli.succeeds(line, f"--set images_at_once=2 --out {tmp_path}")
    one, other = written(tmp_path), written(two_processes / "prior")
    w = one.sample(4, rng=torch.Generator().manual_seed(0))
    torch.testing.assert_close(one(w), other(w), atol=1e-3, rtol=0)
    assert len(read(two_processes / "prior/progress.json")) == 5


def test_two_processes_write_one_attack(
    two_processes: Path, tmp_path: Path, cli: CommandLine
) -> None:
    first, second = outputs(two_processes, "attack")
    assert first.startswith("0\nattack/reconstructions\n") and second == "0\n"
    cli.succeeds(commands(two_processes)["attack"], f"--out {tmp_path}")
    folders = (tmp_path, two_processes / "attack")
    one, other = map(load_latents, folders)
    assert torch.equal(one["labels"], other["labels"])
    torch.testing.assert_close(one["latents"], other["latents"], atol=1e-3, rtol=0)
    pictures = [sorted(p.name for p in f.rglob("*.png")) for f in folders]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 6
    sent = [read(folder / "facts.json")["queries"] for folder in folders]
    assert sent[1] == sent[0] + 20  # the pool, once more


@pytest.mark.parametrize("index", [0, 1])
def test_the_main_process_alone_reports_an_error_of_all(
    tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    processes = one_of(2, index)
    monkeypatch.setattr(processes, "gathered", lambda own: [own, own])
    monkeypatch.setattr("inversight.core.processes.launched", lambda device: processes)
    code, out, err = cli(f"attack --prior {tmp_path / 'none'} --target t --out {tmp_path / 'out'}")
    assert (code, out) == (2, "")
    assert ("none" in err) if index == 0 else (err == "")


def test_rejects_several_processes_for_a_service_and_for_other_commands(
    tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    context = Context(0, torch.device("cpu"), Quiet(), one_of(2, 1))
    with pytest.raises(ConfigError, match="attacked by one process"):
        attack(
            tmp_path / "prior", tmp_path / "out", model=ModelSpec("endpoint:http://127.0.0.1:9"),
            attack="brep-mi", limit=None, preset="quick", given={}, context=context,
        )  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "2")
    for line in ("audit", "train --private .", "score --private . --reconstructions .", "defend ."):
        cli.refuses(f"{line} --out out", "runs in one process, and was launched as 2")


ADAPT = "adapt --prior prior --target target --public public --out new"
ATTACK = "attack --prior prior --target target --out new"
PRIOR = "prior train --public public --out new"
SCORE = "score --private private --out new --reconstructions"


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (f"{ADAPT} --arm entrpy", ("entrpy", "did you mean entropy?")),
        (f"{ADAPT} --guidance-embedding evaluator", ("seen the private",)),
        (f"{ADAPT} --set stps=3", ("stps", "did you mean steps?")),
        (f"{ADAPT} --features pixl", ("pixl", "did you mean pixel?")),
        (f"{PRIOR} --features lpips-vgg", ("lpips-vgg", "public, inception, pixel, none")),
        (f"{PRIOR} --set config=paper", ("config", "did you mean paper")),
        (f"{ADAPT} --target nowhere", ("nowhere", "no such file")),
        (f"{ADAPT} --target {{own}}", ("2 classes", "--classes FILE")),
        (f"{ATTACK} --prior nowhere", ("nowhere",)),
        (f"{ATTACK} --prior private/ann/0.png", ("0.png", "not a prior")),
        (f"{ATTACK} --out prior", ("other files",)),
        (f"{ATTACK} --attack plug", ("--attack plug",)),
        (f"{ATTACK} --set keep=50", ("keep <= candidates",)),
        (f"{SCORE} public --embedding pixel", ("class x", "--private does not have")),
        (f"{SCORE} private --embedding public", ("--network FILE",)),
        (f"{SCORE} private --holdout public --embedding pixel", ("class x is not in --private",)),
    ],
)
def test_wrong_input_writes_nothing(
    trained: dict[str, Path], cli: CommandLine, command: str, parts: tuple[str, ...]
) -> None:
    cli.refuses(command.format(own=own_target(Path())), *parts)


def test_a_stopped_prior_says_how_to_go_on_and_does(
    here: dict[str, Path], cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"prior train --public public {SMALL_PRIOR} --set checkpoint_seconds=1e-9"
    cli.succeeds(command, "--out whole")

    def stopping(self: Terminal, name: str) -> object:
        def progress(done: int, total: int, note: str = "") -> None:
            if name == "prior" and done == 3:
                raise KeyboardInterrupt

        return progress

    with monkeypatch.context() as patch:
        patch.setattr(Terminal, "stage", stopping)
        code, _, err = cli(command, "--out prior")
    assert code == 130 and "continue with: prior train again with the same --out" in err
    cli.succeeds(command, "--out prior")
    whole, resumed = (Path(f) / "prior.safetensors" for f in ("whole", "prior"))
    assert whole.read_bytes() == resumed.read_bytes()
    assert not list(Path("prior").glob("checkpoint*"))


@pytest.mark.parametrize("rate", ["1e20", "1e30"])
def test_a_prior_that_diverges_stops_at_its_last_checkpoint(
    here: dict[str, Path], cli: CommandLine, rate: str
) -> None:
    command = f"prior train --public public --out prior {SMALL_PRIOR} --set steps=40"
    message = cli.fails(command, f"--set checkpoint_seconds=1e-9 --set learning_rate={rate}")
    assert "diverged at step" in message and "not a number" in message
    assert "lower prior.learning_rate" in message
    assert not Path("prior/prior.safetensors").exists()
