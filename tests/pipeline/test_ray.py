"""Shadow models on a Ray cluster: the bits of one process, also after a worker was lost; what is refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from inversight import audit
from inversight.core import cluster
from inversight.core.cluster import Cluster, joined
from inversight.core.errors import ConfigError, StageError
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.models.recipes import TrainingRecipe
from inversight.pipeline.defend import defend
from inversight.pipeline.ray_run import RayRun
from inversight.pipeline.shadow_run import LocalRun, ShadowRun
from inversight.pipeline.shadows import ShadowAttack, ShadowJob, blocks_of
from inversight.priors import untrained_prior
from inversight.settings import Training
from tests.command import CommandLine
from tests.pipeline.ray_parts import Failing, KilledOnce
from tests.pipeline.tiny import TINY, image_folders, without_figures, without_trials

Once = Callable[[str, Callable[[Path], object]], Path]
CPU = torch.device("cpu")
BLOCKS = blocks_of(2, 1)


def small_job(recipe: type[TrainingRecipe] = TrainingRecipe) -> ShadowJob:
    images = ImageSet(
        images=torch.randint(0, 256, (12, 1, 8, 8), generator=generator(0), dtype=torch.uint8),
        labels=torch.arange(12) % 2, ids=tuple(f"{i:02d}" for i in range(12)), classes=("a", "b"),
        hashes=tuple(map(str, range(12))),
    )  # fmt: skip
    training = recipe(Training(epochs=2, width=2, warmup_epochs=0), (1, 8, 8))
    twins = torch.full((12,), -1)
    return ShadowJob(images, 6, twins, training, 0, CPU, pictures=True, keep=True)


def small_attack(marker: Path) -> ShadowAttack:
    from inversight.pipeline.attack import build_attack

    name, attack = build_attack(TINY["attack"][0])
    distance = KilledOnce((8, 8), marker=marker, alive=os.getpid())
    return ShadowAttack(name, attack, untrained_prior((1, 8, 8)), distance, 16 << 20)


def computed(run: ShadowRun, marker: Path) -> None:
    with run:
        run.attack(small_attack(marker))
        run.finish()


def said(call: Callable[[], object]) -> str:
    """Return the message of the error that ``call`` raises."""
    try:
        call()
    except (ConfigError, StageError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def large_tasks() -> None:
    with joined("auto", workers=1, threads=4096, device=CPU):
        pass


def other_version(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cluster, "_versions", lambda: {"inversight": "0.0.0"})
    with joined("auto", workers=1, threads=1, device=CPU):
        pass


def fill(home: Path) -> None:
    """Start a cluster once, do everything that needs it, and keep what came out."""
    told: dict[str, Any] = {}
    (tasks := home / "tasks").mkdir()
    here = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    settings = {**image_folders(home), **TINY, "shadows": 4, "shadow_pairs": 1, "workers": 1}
    settings["attack"] = [*TINY["attack"], {"class": "tests.examples:SampleAttack", "keep": 4}]
    defences = ["tests.defences.examples:Twin", "tests.defences.examples:Broken"]
    with pytest.MonkeyPatch.context() as patch, without_figures():
        patch.setenv("PYTHONPATH", here)
        patch.setenv("RAY_TMPDIR", tempfile.gettempdir())
        patch.setenv("TMPDIR", str(tasks))  # where processes that are killed leave their folders
        patch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
        handler = signal.getsignal(signal.SIGTERM)
        with joined("local", workers=1, threads=1, device=CPU) as found:
            assert isinstance(found, Cluster)
            told["slots"], told["handler"] = (
                found.slots,
                signal.getsignal(signal.SIGTERM) == handler,
            )
            patch.undo()
            lost = RayRun(small_job(), home / "ray", BLOCKS, cluster=found)
            computed(lost, home / "marker")
            told["killed"] = (home / "marker").exists()
            failing = RayRun(small_job(Failing), home / "failing", BLOCKS, cluster=found)
            told["failing"] = said(lambda: computed(failing, home / "marker"))
            with without_trials():
                audit(out=home / "run", **settings, ray="auto")
            defend(home / "run", defences, ray="auto")
            told["large"] = said(large_tasks)
            told["versions"] = said(lambda: other_version(patch))
            patch.undo()
            patch.setattr(cluster, "_RETRIES", 0)
            gone = RayRun(small_job(), home / "gone", BLOCKS, cluster=found)
            told["gone"] = said(lambda: computed(gone, home / "another-marker"))
    computed(LocalRun(small_job(), home / "here", BLOCKS, workers=1, threads=1), home / "marker")
    with without_trials(), without_figures():
        audit(out=home / "run-here", **settings)
        defend(home / "run-here", defences)
    (home / "told.json").write_text(json.dumps(told))


@pytest.fixture(scope="session")
def ray_home(once: Once) -> Path:
    pytest.importorskip("ray")
    return once("ray", fill)


@pytest.fixture
def told(ray_home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ray_home / "told.json").read_text())
    return found


def test_a_block_whose_worker_was_killed_is_computed_again_with_the_same_bits(
    ray_home: Path, told: dict[str, Any]
) -> None:
    assert told["killed"]
    there, here = (
        {p.relative_to(base): p.read_bytes() for p in base.rglob("*.safetensors")}
        for base in (ray_home / "ray", ray_home / "here")
    )
    kept = ("model-0", "model-1", "reconstructions-0", "reconstructions-1")
    assert {str(p) for p in there} == {
        *(f"{block.name}.safetensors" for block in BLOCKS),
        *(f"kept-{block.name}/{name}.safetensors" for block in BLOCKS for name in kept),
    }
    assert there == here


def test_an_audit_on_a_cluster_has_the_tables_of_one_process(ray_home: Path) -> None:
    here, there = (ray_home / name for name in ("run-here", "run"))
    for name in ("samples.parquet", "exposure.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(there / name), pd.read_parquet(here / name))
    assert (there / "metrics.json").read_bytes() == (here / "metrics.json").read_bytes()
    assert json.loads((there / "run.json").read_text())["settings"]["ray"] == "auto"


def test_defended_models_on_a_cluster_have_the_results_of_one_process(ray_home: Path) -> None:
    here, there = (
        json.loads((ray_home / name / "defences" / "defences.json").read_text())["defences"]
        for name in ("run-here", "run")
    )
    assert [{**one, "minutes": 0} for one in there] == [{**one, "minutes": 0} for one in here]
    assert [one["failed"] for one in there] == [None, None, "ValueError: no such luck"]
    runs = ray_home / "run" / "defences" / "runs"
    assert {file.name for file in runs.iterdir()} == {"none-1", "Twin-1"}
    assert json.loads((runs / "Twin-1" / "run.json").read_text())["finished"]


def test_a_cluster_that_was_started_has_this_processes_cores_and_leaves_the_signals(
    told: dict[str, Any],
) -> None:
    assert told["slots"] == 1 and told["handler"]


def test_the_error_of_a_task_is_raised_as_it_is(told: dict[str, Any]) -> None:
    assert told["failing"] == "StageError: there is no such layer"


def test_a_task_that_is_lost_again_and_again_says_what_to_do(told: dict[str, Any]) -> None:
    assert told["gone"].startswith("StageError: a task was lost 1 times")
    assert "run the command again" in told["gone"] and "\n" not in told["gone"]


def test_refuses_a_cluster_that_does_not_fit(told: dict[str, Any]) -> None:
    assert told["large"].startswith(
        "ConfigError: --ray auto: no machine of the cluster has the 4096"
    )
    assert told["versions"].startswith("ConfigError: --ray auto: machine ")
    assert "has inversight " in told["versions"] and "and 0.0.0 is needed" in told["versions"]


FOLDERS = (
    "--private private --holdout holdout --public public "
    "--embedding pixel --features pixel --guidance-embedding pixel"
)


def test_refuses_ray_where_it_is_not_installed(
    cli: CommandLine, here: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = cli.refuses(f"audit {FOLDERS} --shadows 4 --ray local")
    assert message == "inversight: --ray needs Ray: pip install 'inversight[ray]'"


@pytest.mark.parametrize("address", ["somewhere", "host", "host:0", "host:99999", "http://host:80"])
def test_refuses_what_is_no_address(cli: CommandLine, here: dict[str, Path], address: str) -> None:
    pytest.importorskip("ray")
    cli.refuses(
        f"audit {FOLDERS} --shadows 4 --ray {address}", f"--ray {address}: expected local, auto"
    )


def test_refuses_an_address_where_nothing_listens(cli: CommandLine, here: dict[str, Path]) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        cli.refuses(f"audit {FOLDERS} --shadows 4 --ray {address}", f"{address}: no cluster there")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Could not find any"), "--ray auto: no cluster runs on this machine"),
        (RuntimeError("Version mismatch:\n  Ray: 1\n  Python: 2"), "mismatch: Ray: 1 Python: 2"),
        (SystemExit(15), "--ray auto: 15"),
    ],
)
def test_what_ray_says_about_a_cluster_is_one_line(
    cli: CommandLine, here: dict[str, Path], monkeypatch: pytest.MonkeyPatch,
    error: BaseException, message: str,
) -> None:  # fmt: skip
    ray = pytest.importorskip("ray")

    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    cli.refuses(f"audit {FOLDERS} --shadows 4 --ray auto", message)


def test_refuses_a_cluster_without_shadow_models(cli: CommandLine, here: dict[str, Path]) -> None:
    cli.refuses(f"audit {FOLDERS} --shadows 0 --ray local", "--ray runs shadow models")


def test_a_job_knows_its_device_on_the_cluster() -> None:
    job = replace(small_job(), device=torch.device("cuda:3"))
    sent: list[ShadowJob] = []

    class Recording(Cluster):
        def put(self, value: object) -> Any:
            assert isinstance(value, ShadowJob)
            sent.append(value)

        def submit(self, *_: object, **__: object) -> Any: ...

    gpu = Recording(None, "auto", threads=1, device="cuda", gpus=0.5)
    RayRun(job, Path("nowhere"), BLOCKS, cluster=gpu).__enter__()
    assert sent[0].device == torch.device("cuda")
