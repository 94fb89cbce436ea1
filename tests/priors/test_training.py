"""Trainings: resume, checkpoints, divergence, what is learnt, and the networks that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inversight.core.errors import ConfigError, StageError
from inversight.core.seeding import generator
from inversight.priors.architecture import architecture_of
from inversight.priors.stylegan2 import Discriminator, Generator, initialise
from inversight.settings import PriorTraining
from tests.priors import golden
from tests.priors.tiny import (
    SHAPE,
    FixedGuidance,
    Record,
    assert_same,
    fresh_game,
    new_game,
    play,
    state,
    tiny,
)


def test_writes_checkpoints_at_intervals(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    present: list[bool] = []
    play(
        new_game(checkpoint_seconds=1e-6), steps=3, checkpoint=file,
        progress=lambda done, total, note="": present.append(file.is_file()),
    )  # fmt: skip
    assert present == [False, True, True]
    assert not list(tmp_path.glob("*.partial"))


def poison(at: int) -> FixedGuidance:
    """Guidance that turns to NaN at a step; the loss of that step is still a number."""
    guidance = FixedGuidance(torch.zeros_like)
    guidance.pull = lambda images: images * (float("nan") if len(guidance.seen) >= at else 0.0)
    return guidance


@pytest.mark.parametrize(("seconds", "step"), [(1e-6, 4), (1e9, 5)])
def test_the_checkpoint_is_the_last_good_state(tmp_path: Path, seconds: float, step: int) -> None:
    """The NaN is in the networks after step 4: seen there if a checkpoint is due, else by the loss."""
    file = tmp_path / "checkpoint.safetensors"
    begun, game, good = (new_game(checkpoint_seconds=seconds) for _ in range(3))
    play(begun, steps=3)
    begun.save(file, {"log": [], "guidance": {}})
    words = rf"diverged at step {step} .*last good state is in .*checkpoint\.safetensors"
    with pytest.raises(StageError, match=words):
        play(game, fresh=False, checkpoint=file, guidance=poison(at=1))
    good.load(file)
    assert good.is_finite and not game.is_finite
    assert_same(state(good), state(begun))


def test_rejects_networks_with_nan_at_the_end() -> None:
    with pytest.raises(StageError, match=r"at step 2 .*NaN"):
        play(new_game(), steps=2, guidance=poison(at=2))


def test_divergence_suggests_other_settings() -> None:
    game = fresh_game()
    nn.init.constant_(game.discriminator.b4.out.weight, float("nan"))
    with pytest.raises(StageError, match=r"lower prior\.learning_rate or raise prior\.r1"):
        play(game, fresh=False)


def test_progress_counts_images() -> None:
    record = Record()
    play(new_game(batch_size=400), steps=3, progress=record)
    assert [note.split(" images, G ")[0] for note in record.notes] == ["400", "800", "1.2k"]


def test_learns_the_mean_of_the_data() -> None:
    """Images of two grey levels: after training the generator's images have those levels' mean."""
    data = torch.full((64, *SHAPE), 40, dtype=torch.uint8)
    data[32:] = 80
    game = new_game(batch_size=16, width=4, r1=1.0, learning_rate=5e-3)
    play(game, data, steps=40)
    with torch.no_grad():
        w = game.average.mapping(torch.randn(64, 6, generator=generator(5)))
        levels = (game.average(w, noise="none") + 1) * 127.5
    assert abs(float(levels.mean()) - 60.0) < 25.0


def test_networks_follow_the_settings() -> None:
    architecture = architecture_of((3, 16, 16), tiny(width=3))
    g, d = Generator(architecture), Discriminator(architecture)
    assert g.synthesis.b4.const.shape == (12, 4, 4)
    assert d.b16.fromrgb.weight.shape == (3, 3, 1, 1)
    small = architecture_of((1, 64, 64), tiny(width=3))
    assert [small.width_at(r) for r in small.resolutions] == [24, 24, 12, 6, 3]
    paper = architecture_of((3, 256, 256), tiny(config="paper256"))
    assert (paper.w_dim, paper.mapping_depth, paper.resampling) == (512, 8, "fir")
    with pytest.raises(ConfigError, match="prior: size: expected a power of two, found 24"):
        architecture_of((3, 24, 24), tiny())


@pytest.mark.parametrize("row", golden.read()["small"], ids=["digits", "colour"])
def test_small_networks_and_their_draws_stay(row: dict[str, Any]) -> None:
    """Evidence gathered with small priors holds as long as the same seed gives the same networks."""
    architecture = architecture_of(tuple(row["image_shape"]), PriorTraining())
    g, d = Generator(architecture), Discriminator(architecture)
    initialise(g, generator(1, "generator"))
    initialise(d, generator(1, "discriminator"))
    for name, parameter in g.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(row["noise_strength"])
    with torch.no_grad():
        w = g.mapping(torch.randn(4, 64, generator=generator(2)))
        images = g(w, noise="const")
        logits = d(torch.randn(4, *row["image_shape"], generator=generator(3)))
    found = {"w": golden.pick(w, 12), "images": golden.pick(images, 24), "logits": logits}
    for name, values in found.items():
        torch.testing.assert_close(values, torch.tensor(row[name]), rtol=1e-5, atol=1e-5)
