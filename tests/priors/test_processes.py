"""Several processes train the prior that one trains alone."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from inversight.core.errors import ConfigError
from inversight.core.processes import ALONE, Processes, launched
from inversight.core.seeding import generator
from inversight.priors.game import Game
from inversight.priors.training import run_game
from inversight.settings import PriorTraining
from tests.priors import distributed_worker as worker

ROOT = Path(__file__).parents[2]
needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="needs accelerate"
)


def together(*arguments: str, folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """The command in two processes that know of each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for index in range(2):
        environment = os.environ | {
            "RANK": str(index),
            "LOCAL_RANK": str(index),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src"), *sys.path]),
        }
        running.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                env=environment,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    done = []
    for process in running:
        try:
            out, err = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            for other in running:
                other.kill()
            raise
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], **close: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(
            tensor, other[name], msg=name, **(close or {"rtol": 0, "atol": 0})
        )


@needs_accelerate
def test_two_processes_are_as_one(tmp_path: Path) -> None:
    """Equal parameters on both, the same as alone but for rounding, also when stopped and resumed."""
    for process in together(
        "-m", "tests.priors.distributed_worker", str(tmp_path), folder=tmp_path
    ):
        assert process.returncode == 0, process.stderr
    (tmp_path / "alone" / "classes").mkdir(parents=True)
    game = worker.play(tmp_path / "alone", second=True)
    assert game is not None and game.second is not None
    assert game.second.settled == worker.STEPS
    alone = worker.state(game)
    first, second = (load_file(tmp_path / "stop-None" / f"{i}.safetensors") for i in range(2))
    assert_same(first, second)
    assert_same(first, alone, rtol=1e-3, atol=1e-4)
    assert float(alone["memory"][0]) > 0  # path lengths were looked at
    for i in range(2):
        assert_same(load_file(tmp_path / "stop-4" / f"{i}.safetensors"), first)
    known = worker.play(tmp_path / "alone" / "classes", classes=True)
    assert known is not None
    first, second = (load_file(tmp_path / f"classes-{i}.safetensors") for i in range(2))
    assert_same(first, second)
    assert_same(first, worker.state(known), rtol=1e-3, atol=1e-4)


def test_one_process_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert launched() is ALONE
    tensor = torch.ones(3)
    ALONE.average([tensor])
    assert torch.equal(tensor, torch.ones(3)) and ALONE.means([0.1, 2.0]) == [0.1, 2.0]
    assert ALONE.main and ALONE.device("cpu") == torch.device("cpu")
    ALONE.wait()
    ALONE.close()


def test_a_launch_without_accelerate_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConfigError, match=r"pip install 'inversight\[gpus\]'"):
        launched()


def test_half_precision_that_needs_scaled_losses_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match="expected no or bf16"):
        launched()


class Bfloat16:
    """What accelerate gives one process that was launched with --mixed_precision bf16."""

    num_processes, process_index = 1, 0

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)


def test_bfloat16_trains_as_float32_does_but_for_rounding() -> None:
    rows = []
    for processes in (ALONE, Processes(Bfloat16())):
        game = Game(
            image_shape=worker.SHAPE,
            training=worker.TRAINING,
            processes=processes,
        )
        rows.append(run_game(game, worker.PUBLIC, steps=3, rng=generator(3), fresh=True))
        assert all(p.dtype == torch.float32 for p in game.generator.parameters())
    for exact, rounded in zip(*rows, strict=True):
        assert exact["generator"] != rounded["generator"]
        assert rounded["generator"] == pytest.approx(exact["generator"], rel=0.05)
        assert rounded["discriminator"] == pytest.approx(exact["discriminator"], rel=0.05)


class Three:
    """What accelerate tells of three processes."""

    num_processes, process_index = 3, 1


def test_a_batch_must_divide_among_the_processes() -> None:
    with pytest.raises(ConfigError, match="expected a multiple of the 3 processes, found 16"):
        Game(
            image_shape=(1, 8, 8),
            training=PriorTraining(batch_size=16, width=2),
            processes=Processes(Three()),
        )
