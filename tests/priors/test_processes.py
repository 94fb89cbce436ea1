"""Trainings in several processes, and in another precision."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inversight.core.errors import ConfigError
from inversight.core.processes import ALONE, launched
from inversight.priors.architecture import architecture_of
from inversight.priors.game import Game
from tests.priors.tiny import SHAPE, assert_same, one_of, play, state, tiny
from tests.priors.two_processes import STEPS, Positions, conditional_game


def test_two_processes_train_as_one(two_processes: Path, tmp_path: Path) -> None:
    """Equal parameters on both, the same as alone but for rounding, also when stopped and resumed."""
    first, *others = (
        load_file(two_processes / f"{name}-{index}.safetensors")
        for name in ("whole", "resumed")
        for index in range(2)
    )
    for other in others:
        assert_same(first, other)
    game = conditional_game(tmp_path)
    assert isinstance(game.second, Positions) and game.second.settled == STEPS
    assert_same(first, state(game), rtol=1e-3, atol=1e-4)
    assert game.path_length.mean > 0


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


def test_several_processes_need_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConfigError, match=r"pip install 'inversight\[gpus\]'"):
        launched()


def test_rejects_half_precision_that_needs_scaled_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match="expected no or bf16"):
        launched()


def test_bfloat16_trains_as_float32_but_for_rounding() -> None:
    training, rows = tiny(), []
    half = one_of(1, 0, autocast=partial(torch.autocast, "cpu", dtype=torch.bfloat16))
    for processes in (ALONE, half):
        game = Game(architecture_of(SHAPE, training), training, processes=processes)
        rows.append(play(game, steps=3))
        assert all(p.dtype == torch.float32 for p in game.generator.parameters())
    for exact, rounded in zip(*rows, strict=True):
        assert exact["generator"] != rounded["generator"]
        for name in ("generator", "discriminator"):
            assert rounded[name] == pytest.approx(exact[name], rel=0.05)


def test_rejects_batches_that_processes_do_not_divide() -> None:
    training = tiny(batch_size=16)
    with pytest.raises(ConfigError, match="expected a multiple of the 3 processes, found 16"):
        Game(architecture_of(SHAPE, training), training, processes=one_of(3, 1))
