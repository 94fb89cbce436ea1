"""Single stages on the command line, each reading what the one before it wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from inversight.attacks import load_latents
from inversight.core.console import Quiet, Terminal
from inversight.core.errors import ConfigError
from inversight.core.processes import Processes
from inversight.models.spec import ModelSpec
from inversight.pipeline.attack import attack
from inversight.priors import StylePrior
from tests.command import CommandLine
from tests.pipeline.tiny import (
    SMALL_ATTACK,
    SMALL_PRIOR,
    SMALL_TRAINING,
    untrained_spec,
)
from tests.two_processes import commands


def test_from_training_to_scores(trained: dict[str, Path], cli: CommandLine) -> None:
    code, out, _ = cli(
        "adapt --prior prior --target target --public public --guidance-embedding pixel",
        "--features pixel --set steps=2 --set iterations=2 --out adapted",
    )
    assert (code, out) == (0, "adapted/prior.safetensors\n")
    before, after = (StylePrior.load(Path(f) / "prior.safetensors") for f in ("prior", "adapted"))
    w = torch.zeros(1, 64)
    assert not torch.equal(before(w), after(w))
    assert "entropy" in after.log[-1]

    out = cli.succeeds("attack --prior adapted --target target --out attacked", *SMALL_ATTACK)[0]
    assert "inversight score --reconstructions attacked/reconstructions" in out
    assert load_latents(Path("attacked"))["labels"].tolist() == [0, 0, 0, 1, 1, 1]
    facts = json.loads(Path("attacked/facts.json").read_text())
    assert facts["queries"] > 0
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
    assert json.loads(Path("scored/metrics.json").read_text())["accuracy_top1"]["value"] is not None


@pytest.mark.parametrize(
    ("name", "settings", "queries"),
    [
        (
            "mirror-black-box",
            ("population=5", "generations=3", "candidates=4"),
            20 + 2 * 3 * 4 + 16,
        ),
        ("cma-es", ("searches=4", "population=4", "generations=3"), 20 + 2 * 4 * 3 * 4 + 16),
    ],
)
def test_black_box_attacks(
    trained: dict[str, Path],
    cli: CommandLine,
    name: str,
    settings: tuple[str, ...],
    queries: int,
) -> None:
    err = cli.succeeds(
        f"attack --prior prior --target target --attack {name} --out new",
        *(w for s in ("pool=20", "keep=3", "crops=2", *settings) for w in ("--set", s)),
    )[1]
    assert f"{name}: {queries} images sent to the target, scores access" in err
    assert json.loads(Path("new/facts.json").read_text()) == {"queries": queries, "left_out": None}
    assert len(list(Path("new/reconstructions").rglob(f"{name}-*.png"))) == 6
    code, _, err = cli(
        f"attack --prior prior --target target --attack {name} --out low --set most_queries=30"
    )
    assert code == 1 and "limit of 30 queries is spent" in err
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
        logs[arm] = StylePrior.load(Path(arm) / "prior.safetensors").log[-1]
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
    assert "public images as well" in err, err
    assert StylePrior.load(Path("pivoted") / "prior.safetensors").pivots is not None
    attack = (
        "attack",
        "--target",
        "target",
        "--attack",
        "plg-mi",
        *SMALL_ATTACK,
        "--set",
        "crops=2",
    )
    cli.succeeds(*attack, "--prior pseudo-labels --out plain")
    code, _, err = cli(*attack, "--prior vanilla --out refused")
    assert code == 2 and "--arm pseudo-labels" in err and not Path("refused").exists()


def test_training_is_watched(
    here: dict[str, Path], cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a public network that what comes after finds again."""
    from inversight.core.console import Terminal

    stages: list[str] = []

    def noting(self: Terminal, name: str) -> object:
        stages.append(name)
        return lambda done, total, note="": None

    monkeypatch.setattr(Terminal, "stage", noting)
    cli.succeeds("train --private private --out target", SMALL_TRAINING)
    cli.succeeds(
        "prior train --public public --out prior", *SMALL_PRIOR[2:], "--set watch_images=8"
    )
    assert stages[-3:] == ["reading", "public-network", "prior"]
    written = json.loads(Path("prior/progress.json").read_text())
    assert [row["images"] for row in written] == [0, 8, 16]
    assert all(row["frechet"] > 0 for row in written)
    names = sorted(p.name for p in Path("prior/samples").iterdir())
    assert names == [f"images-{n:09d}.png" for n in (0, 8, 16)]

    cli.succeeds(
        "adapt --prior prior --target target --public public --arm entropy --set steps=2",
        "--out adapted",
    )
    assert stages[-2:] == ["reading", "adaptation"]  # the prior's network was there
    before, after = json.loads(Path("adapted/progress.json").read_text())
    assert before["frechet"] == pytest.approx(written[-1]["frechet"])
    assert "objective" not in before and "frechet" in after
    cli.succeeds(
        "score --private private --reconstructions holdout --embedding public",
        "--network adapted/public-network --out scored",
    )


def test_a_training_goes_on_with_what_it_began_with(
    here: dict[str, Path], cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("prior", "train", "--public", "public", "--out", "prior", *SMALL_PRIOR)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("inversight.priors.train_prior", stop)
        code, _, err = cli(*command)
    assert code == 130 and "continue with: prior train again" in err
    code, _, err = cli(*command, "--seed 1")
    assert code == 2 and "a training began there and --seed differed" in err
    shutil.copytree("public", "public/again")
    code, _, err = cli(*command)
    assert code == 2 and "the public images differed" in err
    shutil.rmtree("public/again")
    cli.succeeds(*command)
    code, _, err = cli(*command)
    assert code == 2 and "holds other files" in err


def test_a_training_that_diverges_fails_in_one_line(
    here: dict[str, Path], cli: CommandLine
) -> None:
    code, _, err = cli(
        "prior train --public public --out prior",
        *SMALL_PRIOR,
        "--set learning_rate=1e30 --set checkpoint_seconds=1e-9",
    )
    assert code == 1 and "diverged at step" in err and "lower prior.learning_rate" in err
    assert not Path("prior/prior.safetensors").exists()


def test_published_settings_are_laid_below_what_is_given(
    here: dict[str, Path], cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def stop(*_: object, training: object, **__: object) -> None:
        seen.append(training)
        raise KeyboardInterrupt

    monkeypatch.setattr("inversight.priors.train_prior", stop)
    cli(
        "prior train --public public --out prior --features none --set config=cifar", "--set r1=0.5"
    )
    (training,) = seen
    assert (training.ema_images, training.r1, training.penalty_steps) == (500e3, 0.5, True)  # type: ignore[attr-defined]


def outputs(folder: Path, command: str) -> list[str]:
    """Return exit code and standard output of both processes."""
    return [(folder / f"{command}-{i}.txt").read_text() for i in range(2)]


def test_two_processes_write_one_prior(
    two_processes: Path, tmp_path: Path, cli: CommandLine
) -> None:
    assert outputs(two_processes, "prior") == ["0\nprior/prior.safetensors\n", "0\n"]
    line = commands(two_processes)["prior"]
    cli.succeeds(line, f"--set images_at_once=2 --out {tmp_path}")
    one, other = (
        StylePrior.load(f / "prior.safetensors") for f in (tmp_path, two_processes / "prior")
    )
    w = one.sample(4, rng=torch.Generator().manual_seed(0))
    torch.testing.assert_close(one(w), other(w), atol=1e-3, rtol=0)
    assert len(json.loads((two_processes / "prior/progress.json").read_text())) == 5


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
    sent = [json.loads((f / "facts.json").read_text())["queries"] for f in folders]
    assert sent[1] == sent[0] + 20  # the pool, once more


@pytest.mark.parametrize("index", [0, 1])
def test_what_all_were_told_is_said_once(
    tmp_path: Path,
    cli: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    index: int,
) -> None:
    class OneOfTwo:
        num_processes, process_index = 2, index
        device = torch.device("cpu")

    processes = Processes(OneOfTwo())
    monkeypatch.setattr(processes, "gathered", lambda own: [own, own])
    monkeypatch.setattr("inversight.core.processes.launched", lambda device: processes)
    code, out, err = cli(f"attack --prior {tmp_path / 'none'} --target t --out {tmp_path / 'out'}")
    assert (code, out) == (2, "")
    assert ("none" in err) if index == 0 else (err == "")


def test_a_service_and_an_audit_are_the_work_of_one_process(
    tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OneOfTwo:
        num_processes, process_index = 2, 1

    service = ModelSpec("endpoint:http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="attacked by one process"):
        attack(
            tmp_path / "prior", tmp_path / "out", model=service, attack="brep-mi", limit=None,
            preset="quick", seed=0, device="cpu", given={}, reporter=Quiet(),
            processes=Processes(OneOfTwo()),
        )  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = tmp_path / "out"
    for command in (
        ("audit", "--out", out),
        ("train", "--private", tmp_path, "--out", out),
        ("score", "--private", tmp_path, "--reconstructions", tmp_path, "--out", out),
        ("defend", tmp_path, "--out", out),
    ):
        code, _, err = cli(*command)
        assert code == 2, command
        assert "this command runs in one process, and was launched as 2" in err
    assert not list(tmp_path.iterdir())


ADAPT = ("adapt", "--prior", "prior", "--public", "public", "--out", "new")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((*ADAPT, "--target", "target", "--arm", "entrpy"), ("entrpy", "did you mean entropy?")),
        ((*ADAPT, "--target", "target", "--guidance-embedding", "evaluator"), ("seen the private",)),
        ((*ADAPT, "--target", "target", "--set", "stps=3"), ("stps", "did you mean steps?")),
        ((*ADAPT, "--target", "target", "--features", "pixl"), ("pixl", "did you mean pixel?")),
        (("prior", "train", "--public", "public", "--out", "new", "--features", "lpips-vgg"),
         ("--features lpips-vgg", "public, inception, pixel, none")),
        (("prior", "train", "--public", "public", "--out", "new", "--set", "config=paper"),
         ("config", "did you mean paper")),
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
    trained: dict[str, Path],
    cli: CommandLine,
    arguments: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    spec = untrained_spec(trained["private"].parent / "own.safetensors")
    code, _, err = cli(*[spec if a == "own" else a for a in arguments])
    complaints = [line for line in err.splitlines() if line.startswith("inversight: ")]
    assert code == 2 and len(complaints) == 1 and "Traceback" not in err
    for part in parts:
        assert part in complaints[0]
    assert not Path("new").exists() and not list(Path.cwd().glob(".*"))


def test_a_stopped_prior_says_how_to_go_on_and_does(
    here: dict[str, Path], cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (
        "prior",
        "train",
        "--public",
        "public",
        *SMALL_PRIOR,
        "--set",
        "checkpoint_seconds=1e-9",
    )
    cli.succeeds(*command, "--out whole")

    from inversight.core.console import Terminal

    def stopping(self: Terminal, name: str) -> object:
        def progress(done: int, total: int, note: str = "") -> None:
            if name == "prior" and done == 3:
                raise KeyboardInterrupt

        return progress

    with monkeypatch.context() as patch:
        patch.setattr(Terminal, "stage", stopping)
        code, _, err = cli(*command, "--out prior")
    assert code == 130 and "continue with: prior train again with the same --out" in err
    cli.succeeds(*command, "--out prior")
    whole, resumed = (Path(f) / "prior.safetensors" for f in ("whole", "prior"))
    assert whole.read_bytes() == resumed.read_bytes()
    assert not list(Path("prior").glob("checkpoint*"))
