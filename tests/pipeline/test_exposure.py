"""Shadow models of an audit: blocks, workers, growth, tables, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import inversight
from inversight import AuditResult
from inversight.core.console import Quiet
from inversight.core.errors import ConfigError
from inversight.core.run import read_object
from inversight.data import ImageSet, join_images
from inversight.models.target import Target
from inversight.pipeline.audit_shadows import decide_shadows, recipe_of, shadow_job
from inversight.pipeline.estimate import Estimate
from inversight.pipeline.expose import expose, plan_exposure
from inversight.pipeline.exposure import median_pair
from inversight.pipeline.plan import Plan
from inversight.pipeline.shadow_run import LocalRun
from inversight.pipeline.shadows import (
    NO_ROW,
    Measured,
    ShadowAttack,
    ShadowJob,
    blocks_of,
    run_block,
    train_block,
)
from inversight.pipeline.train import load_network
from inversight.priors import StylePrior
from inversight.risk.design import draw_design
from inversight.settings import resolve
from tests.command import CommandLine
from tests.pipeline.tiny import SHADOWED, image_folders

pytestmark = pytest.mark.usefixtures("no_trials")
CPU = torch.device("cpu")
PIXEL = "--embedding pixel --features pixel --guidance-embedding pixel"


@pytest.fixture
def prepared(audited: Path) -> tuple[ShadowJob, ShadowAttack]:
    """The job and the attack of the audit's shadow models, made from what the audit left."""
    from inversight.pipeline.score import scoring_embeddings

    plan = Plan.prepare(
        resolve(json.loads((audited / "run/run.json").read_text())["given"]), Quiet()
    )
    epochs = read_object(audited / "run/stages/target/facts.json")["epochs"]
    recipe = recipe_of(plan, epochs)
    network = load_network(audited / "run/stages/public-network", CPU)
    distance, _ = scoring_embeddings(
        "public", "public", size=plan.inputs.private.size, network=network, evaluator=None
    )
    prior = StylePrior.load(audited / "run/stages/prior/prior.safetensors")
    [(name, attack)] = plan.attacks.items()
    return shadow_job(plan, recipe), ShadowAttack(name, attack, prior, distance, 1 << 28, several=3)


def tensors(file: Path) -> dict[str, Tensor]:
    return load_file(file)


def same(left: Path, right: Path) -> bool:
    a, b = tensors(left), tensors(right)
    return a.keys() == b.keys() and all(
        torch.equal(a[k].nan_to_num(-1), b[k].nan_to_num(-1)) for k in a
    )


def blocks(run: Path) -> list[Path]:
    return sorted((run / "stages/shadows").glob("pairs-*.safetensors"))


def test_audit_keeps_a_row_for_each_model_and_image(audited: Path) -> None:
    found = Measured.read(audited / "run/stages/shadows", pairs=4, size=2)
    assert found.distances.shape == found.membership.shape == found.losses.shape == (8, 22)
    assert torch.equal(found.membership[0::2], ~found.membership[1::2])
    assert bool((found.losses >= 0).all()) and found.pictures.dtype == torch.uint8
    # Every picture is of a reconstruction, and rows say which.
    assert int(found.rows.max()) == len(found.pictures) - 1


def test_audit_with_shadows_adds_to_the_one_without(audited: Path) -> None:
    with_them, without = (
        pd.read_parquet(audited / run / "samples.parquet").set_index("id").sort_index()
        for run in ("run", "none")
    )
    pd.testing.assert_frame_equal(with_them[without.columns], without)
    assert {"exposure", "exposure_low", "exposure_high", "exposure_p", "exposed"} <= set(with_them)
    metrics, before = (read_object(audited / run / "metrics.json") for run in ("run", "none"))
    names = ("exposed", "exposure_mean", "exposure_auc", "membership_auc")
    assert {k: v for k, v in metrics.items() if k not in names} == {
        k: v for k, v in before.items() if k not in names
    }
    assert metrics["exposure_mean"]["value"] > 0 and metrics["exposure_mean"]["models"] == 8
    assert "--shadows" in before["exposed"]["reason"]
    every = pd.read_parquet(audited / "run/exposure.parquet")
    assert every["role"].value_counts().to_dict() == {"private": 12, "holdout": 10}
    facts = read_object(audited / "run/run.json")["shadows"]
    assert facts["looks"] == [8] and facts["train_images"] == 11 and facts["target_images"] == 12


def test_most_exposed_images_come_first_and_are_shown(audited: Path) -> None:
    samples = pd.read_parquet(audited / "run/samples.parquet")
    assert samples["exposure_shrunken"].is_monotonic_decreasing
    page = (audited / "run/report.html").read_text()
    assert samples["id"][0] in page


def test_block_gives_the_same_bits_again_and_where_models_were_trained_ahead(
    prepared: tuple[ShadowJob, ShadowAttack], audited: Path, tmp_path: Path
) -> None:
    job, attack = prepared
    _, second = blocks_of(4, 2)
    kept = blocks(audited / "run")[1]
    run_block(job, attack, second, tmp_path / "a")
    assert same(second.file(tmp_path / "a"), kept)
    train_block(job, second, tmp_path / "b")
    assert second.models(tmp_path / "b").is_dir()
    run_block(job, attack, second, tmp_path / "b")
    assert same(second.file(tmp_path / "b"), kept)
    assert not second.models(tmp_path / "b").exists()


def test_worker_processes_give_the_bits_of_one(
    prepared: tuple[ShadowJob, ShadowAttack], audited: Path, tmp_path: Path
) -> None:
    job, attack = prepared
    with LocalRun(job, tmp_path, blocks_of(4, 2), workers=2, threads=1) as run:
        run.attack(attack)
        run.finish()
    for file in blocks(audited / "run"):
        assert same(tmp_path / file.name, file)


def test_block_that_another_process_holds_is_left_to_it(
    prepared: tuple[ShadowJob, ShadowAttack], tmp_path: Path
) -> None:
    from filelock import FileLock

    job, attack = prepared
    [block] = blocks_of(1, 2)
    with FileLock(tmp_path / f".{block.name}.lock", is_singleton=False):
        assert not run_block(job, attack, block, tmp_path)
    assert not block.file(tmp_path).exists()


def test_models_that_are_added_later_are_those_of_one_go(audited: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(audited / "none", run)
    expose(run, shadows=4)
    first = expose(run, shadows=8)
    for file in blocks(audited / "run"):
        assert same(run / "stages/shadows" / file.name, file)
    facts = read_object(run / "run.json")["shadows"]
    assert facts["looks"] == [4, 8]
    at_once = pd.read_parquet(audited / "run/exposure.parquet")
    grown = pd.read_parquet(run / "exposure.parquet")
    assert (grown["exposure"] == at_once["exposure"]).all()
    # The second look costs a factor of 2 x 3.
    expected = (6 * at_once["exposure_p"]).clip(upper=1.0)
    assert grown["exposure_p"].to_numpy() == pytest.approx(expected.to_numpy())
    assert isinstance(first, AuditResult)


def test_plan_says_what_more_models_would_find(audited: Path) -> None:
    found = plan_exposure(audited / "run")
    assert [one.models for one in found] == [8, 16, 24, 32, 64]
    factors = [one.mean for one in found]
    assert factors == sorted(factors, reverse=True) and all(one.measured for one in found)
    seconds = [one.seconds for one in found]
    assert all(s is not None for s in seconds) and seconds[-1] == pytest.approx(
        8 * (seconds[0] or 0)
    )


def test_images_are_joined_by_role_and_id() -> None:
    from inversight.data import image_set

    one = image_set(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), ["a", "a"], ["y", "x"], ["a"])
    joined = join_images(one, replace(one, ids=("x", "z")))
    assert joined.ids == ("private/x", "private/y", "holdout/x", "holdout/z")
    assert isinstance(joined, ImageSet) and joined.groups is None


def test_median_pair_is_of_the_middle_difference() -> None:
    member = torch.tensor([True, False, False, True, True, False])
    logs = torch.tensor([0.0, 1.0, 5.0, 0.0, 0.0, 3.0])  # differences 1, 5, 3
    assert median_pair(logs, member) == (4, 5)
    assert median_pair(torch.full((6,), float("nan")), member) is None


def test_pairs_do_not_depend_on_how_many_there_are(
    prepared: tuple[ShadowJob, ShadowAttack],
) -> None:
    job, _ = prepared
    whole = draw_design(job.images.labels, job.units, pairs=6, seed=job.seed)
    part = draw_design(job.images.labels, job.units, pairs=2, seed=job.seed, first=4)
    assert torch.equal(whole[8:], part)


def test_class_without_reconstructions_has_no_picture(
    prepared: tuple[ShadowJob, ShadowAttack], tmp_path: Path
) -> None:
    class OneClass:
        access = prepared[1].attack.access

        def run(self, target: Any, prior: Any, labels: Tensor, **others: Any) -> Any:
            return prepared[1].attack.run(target, prior, labels[:1], **others)

    job, attack = prepared
    [block] = blocks_of(1, 1)
    run_block(job, replace(attack, attack=OneClass()), block, tmp_path)
    found = Measured.load(block.file(tmp_path))
    missing = job.images.labels != job.labels[0]
    assert bool(found.distances[:, missing].isnan().all())
    assert bool((found.rows[:, missing] == NO_ROW).all()) and int(found.rows.min()) == NO_ROW
    assert bool(found.distances[:, ~missing].isfinite().all())


def test_models_of_a_recipe_are_moved_to_the_device_of_the_job(
    prepared: tuple[ShadowJob, ShadowAttack], tmp_path: Path
) -> None:
    moved = []

    class Elsewhere(Target):
        def to(self, device: torch.device | str) -> Target:
            moved.append(device)
            return super().to(device)

    class Own:
        description = "one of one's own"

        def fit(self, images: ImageSet, **given: Any) -> Target:
            return Elsewhere(**vars(recipe.fit(images, **given)))

    job, attack = prepared
    recipe = job.recipe
    assert recipe is not None
    run_block(replace(job, recipe=Own()), attack, blocks_of(1, 1)[0], tmp_path)
    assert moved == [CPU, CPU]


def test_models_of_ones_own(audited: Path, tmp_path: Path, cli: CommandLine) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(audited / "none", run)
    lines = ["model,members"]
    names = sorted(
        p.relative_to(audited / "private").as_posix() for p in (audited / "private").rglob("*.png")
    )
    for number in range(4):
        shutil.copytree(audited / "none/stages/target", tmp_path / f"model-{number}")
        chosen = [n for i, n in enumerate(names) if (i + number) % 2]
        (tmp_path / f"members-{number}.txt").write_text("\n".join(f"private/{n}" for n in chosen))
        lines.append(f"model-{number},members-{number}.txt")
    (tmp_path / "models.csv").write_text("\n".join(lines))
    cli.succeeds(f"expose {run} --models {tmp_path / 'models.csv'}")
    metrics = read_object(run / "metrics.json")
    # One model four times: nothing can differ between with and without.
    assert metrics["exposure_mean"]["value"] == pytest.approx(1.0)
    assert read_object(run / "run.json")["shadows"]["recipe"] == "models that were given"


def test_target_that_was_given_is_tested_by_its_recipe(audited: Path, tmp_path: Path) -> None:
    result = inversight.audit(
        **image_folders(tmp_path), **{**SHADOWED, "shadows": 4}, out=tmp_path / "run",
        target=str(audited / "run/stages/target"), recipe="tests.models.test_recipes:train",
    )  # fmt: skip
    facts = read_object(tmp_path / "run/run.json")["shadows"]
    assert facts["recipe"] == "tests.models.test_recipes:train"
    assert "given_auc" not in result.metrics["exposure_mean"]  # needs six models
    # Its own models cannot be trained as one network, so that every block trains them itself.
    assert len(blocks(tmp_path / "run")) == 1


@pytest.mark.parametrize(
    ("per_model", "target", "models", "part"),
    [
        (1.0, False, 16, ""),  # 16 s, of 100 s for the rest
        (30.0, False, 0, "inversight expose run --shadows 16"),
        (None, False, 0, "unknown time"),
        (1.0, True, 0, "give --recipe"),
    ],
)
def test_auto_decides_by_recipe_and_estimate(
    audited: Path, per_model: float | None, target: bool, models: int, part: str
) -> None:
    given = json.loads((audited / "run/run.json").read_text())["given"] | {"shadows": "auto"}
    if target:
        given["target"] = str(audited / "run/stages/target")
    plan = Plan.prepare(resolve(given), Quiet())
    forecast = Estimate({"rest": 100.0}, 0, 0, shadow=per_model)
    decided, reason = decide_shadows(plan, forecast, Path("run"))
    assert decided.shadows == models
    assert part in (reason or "") and (reason is None) == (models > 0)


def test_threshold_on_exposure_without_shadow_models_is_refused_before_the_run(
    audited: Path,
) -> None:
    given = json.loads((audited / "run/run.json").read_text())["given"]
    plan = Plan.prepare(resolve({**given, "shadows": "auto", "fail_on": "exposed>0.02"}), Quiet())
    with pytest.raises(ConfigError, match="exposed needs the shadow models"):
        decide_shadows(plan, Estimate({"rest": 1.0}, 0, 0, shadow=9.0), Path("run"))


def test_target_that_was_given_without_recipe(
    audited: Path, tmp_path: Path, cli: CommandLine
) -> None:
    folders = image_folders(tmp_path)
    given = " ".join(f"--{name} {path}" for name, path in folders.items())
    target = f"--target {audited / 'run/stages/target'}"
    code, _, err = cli(f"audit {given} {target} {PIXEL} --shadows 8 --out {tmp_path / 'x'}")
    assert code == 2 and "give --recipe" in err and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ("--shadows 5", ("shadows", "even number", "found '5'")),
        ("--shadows 2", ("shadows", "at least 4")),
        ("--shadows 4", ("--shadows 4", "has 8 shadow models")),
        ("--shadows many", ("shadows", "expected auto")),
        ("--models none.csv", ("--models none.csv", "cannot be read")),
        ("--models none.csv --shadows 8", ("--models", "--shadows")),
        ("--plan --shadows 8", ("--plan", "--shadows")),
    ],
)
def test_refuses(audited: Path, cli: CommandLine, options: str, parts: tuple[str, ...]) -> None:
    run = "none" if "models none.csv" in options else "run"
    code, _, err = cli(f"expose {audited / run} {options}")
    assert code == 2 and err.count("\n") == 1 and all(part in err for part in parts), err


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        ("model\nx\n", ("lacks members",)),
        ("model,members\nx,y\n", ("at least 4 models, found 1",)),
        ("model,members\n" + "x,none.txt\n" * 4, ("line 2", "none.txt", "cannot be read")),
        ("model,members\n" + "x,wrong.txt\n" * 4, ("no member of", "the first is nobody.png")),
        ("model,members\n" + "x,twice.txt\n" * 4, ("ann/0.png is in --private and in --holdout",)),
        ("model,members\n" + "nothing,right.txt\n" * 4, ("--models nothing", "no such file")),
    ],
)
def test_refuses_models(
    audited: Path, tmp_path: Path, cli: CommandLine, table: str, parts: tuple[str, ...]
) -> None:
    (tmp_path / "wrong.txt").write_text("nobody.png\n")
    (tmp_path / "twice.txt").write_text("ann/0.png\n")
    (tmp_path / "right.txt").write_text("private/ann/0.png\n")
    (tmp_path / "models.csv").write_text(table)
    code, _, err = cli(f"expose {audited / 'none'} --models {tmp_path / 'models.csv'}")
    assert code == 2 and err.count("\n") == 1 and all(part in err for part in parts), err
