"""One step of the game: averages, penalties in steps of their own, mixing, microbatches of a batch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inversight.core.errors import ConfigError, DataError
from inversight.core.seeding import generator
from inversight.priors.game import Game, Microbatch
from inversight.priors.penalties import r1_penalty
from inversight.settings import PriorTraining, resolve_prior_training
from tests.priors.test_training import SHAPE, assert_same, fresh_game, public, state, tiny


def real(n: int = 4) -> Tensor:
    return public()[:n].float() / 127.5 - 1.0


def updates(optimiser: torch.optim.Optimizer) -> int:
    return max(int(s["step"]) for s in optimiser.state_dict()["state"].values())


def test_the_average_forgets_half_in_its_half_life() -> None:
    game = fresh_game(tiny(ema_images=40.0, ema_rampup=None))
    for average, own in ((game.average, 0.0), (game.generator, 1.0)):
        for parameter in average.parameters():
            parameter.data.fill_(own)
    for _ in range(10):  # ten times four images
        game._update_average(4)
    for parameter in game.average.parameters():
        torch.testing.assert_close(parameter.data, torch.full_like(parameter, 0.5))


@pytest.mark.parametrize(("rampup", "half_life"), [(0.05, 4.0), (0.5, 40.0), (None, 50.0)])
def test_ramp_up_bounds_the_half_life(rampup: float | None, half_life: float) -> None:
    game = fresh_game(tiny(ema_images=50.0, ema_rampup=rampup))
    for average, own in ((game.average, 0.0), (game.generator, 1.0)):
        for parameter in average.parameters():
            parameter.data.fill_(own)
    game.done = 20  # of four images
    game._update_average(4)
    moved = next(game.average.parameters()).flatten()[0]
    assert float(moved) == pytest.approx(1 - 0.5 ** (4 / half_life), rel=1e-5)


@pytest.mark.parametrize("own_steps", [False, True])
def test_penalties_join_a_step_or_take_their_own(own_steps: bool) -> None:
    game = fresh_game(tiny(path_length=2.0, path_length_interval=3, penalty_steps=own_steps))
    for i in range(6):
        game.step([Microbatch(real(), generator(3, i))])
    # R1 on steps 0, 2, 4 and path lengths on 0, 3.
    assert updates(game.optimise_d) == (9 if own_steps else 6)
    assert updates(game.optimise_g) == (8 if own_steps else 6)
    assert game.path_length.mean > 0


def test_a_penalty_of_no_weight_is_none() -> None:
    one, other = fresh_game(tiny(r1=0.0, penalty_steps=True)), fresh_game(tiny(r1=0.0))
    for game in (one, other):
        game.optimise_g = torch.optim.SGD(game.generator.parameters(), lr=1e-3)
        game.step([Microbatch(real(), generator(3))])
    assert_same(state(one), state(other))


def test_both_players_adam_is_corrected() -> None:
    game = fresh_game(tiny(path_length=2.0, path_length_interval=4, learning_rate=2e-3))
    (g,) = game.optimise_g.param_groups
    assert g["lr"] == pytest.approx(2e-3 * 4 / 5)
    assert g["betas"] == pytest.approx((0.0, 0.99 ** (4 / 5)))


def test_r1_looks_at_images_before_the_published_augmentation() -> None:
    """By the chain rule on a discriminator that is linear: D(x) = sum(v x), so |grad| is known."""
    game = fresh_game(tiny(augment_filter=True))
    game.control.p = 0.8
    v = torch.randn(1, *SHAPE, generator=generator(5))
    game.discriminator.outputs = lambda images: (v * images).sum((1, 2, 3))[:, None]  # type: ignore[method-assign]
    logits, _, images = game._judge_real(Microbatch(real(), generator(6)), follow=True)
    assert torch.equal(images, real())
    found = float(r1_penalty(logits, images).detach())
    # The transpose of the augmentation, which is affine in the images: pixel by pixel.
    zero = game._judge_real(Microbatch(torch.zeros(4, *SHAPE), generator(6)), follow=False)[0]
    slopes = []
    for pixel in range(64):
        unit = torch.zeros(4, 64)
        unit[:, pixel] = 1.0
        moved = game._judge_real(Microbatch(unit.view(4, *SHAPE), generator(6)), follow=False)[0]
        slopes.append(moved - zero)
    expected = torch.stack(slopes).square().sum(0).mean()
    assert found == pytest.approx(float(expected), rel=1e-3)


def test_without_the_filter_r1_looks_at_what_the_discriminator_sees() -> None:
    game = fresh_game(tiny())
    game.control.p = 1.0
    logits, _, images = game._judge_real(Microbatch(real(), generator(6)), follow=True)
    assert not torch.allclose(images, real(), atol=0.1)
    torch.testing.assert_close(logits, game.discriminator(images))


def test_styles_are_mixed_as_often_as_asked() -> None:
    game = fresh_game(tiny(mixing=0.9))
    mixed, crossovers = 0, set()
    for i in range(300):
        w, ws = game._latents(2, generator(8, i))
        if ws.dim() == 3:
            mixed += 1
            same = (ws == w[:, None]).all(2).all(0)
            assert bool(same[0]) and not bool(same[-1])
            crossovers.add(int(same.sum()))
    assert abs(mixed / 300 - 0.9) < 4 * math.sqrt(0.09 / 300)
    assert crossovers == set(range(1, game.generator.num_ws))
    _, plain = fresh_game(tiny())._latents(2, generator(8))
    assert plain.dim() == 2


def test_shares_add_up_to_the_batch() -> None:
    """A discriminator's gradient of two microbatches is the mean of each one's."""
    seen: list[list[Tensor]] = []

    class Recording(Game):
        def _apply(self, optimiser: torch.optim.Optimizer) -> None:
            seen.append([p.grad.clone() for p in optimiser.param_groups[0]["params"]])

    begun = fresh_game(tiny())
    parts = [(real(8)[:4], 3), (real(8)[4:], 4)]
    for some in (parts, parts[:1], parts[1:]):
        game = Recording(image_shape=SHAPE, training=tiny())
        game.start_from(begun.generator, begun.average, begun.discriminator, 0.5)
        game._step_discriminators([Microbatch(x, generator(seed)) for x, seed in some])
    together, *alone = seen
    for whole, one, other in zip(together, *alone, strict=True):
        torch.testing.assert_close(whole, (one + other) / 2)


def test_batches_that_cannot_be_shared_out() -> None:
    assert Game(image_shape=SHAPE, training=tiny(images_at_once=2)).at_once == 2
    assert Game(image_shape=SHAPE, training=tiny(images_at_once=64)).at_once == 4
    with pytest.raises(ConfigError, match=r"prior\.images_at_once: expected a divisor of the 4"):
        Game(image_shape=SHAPE, training=tiny(images_at_once=3))


def test_a_checkpoint_of_other_networks(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    fresh_game(tiny()).save(file, {})
    with pytest.raises(DataError, match="go on with the settings it began with"):
        Game(image_shape=SHAPE, training=tiny(width=3)).load(file)
    file.write_text("no checkpoint")
    with pytest.raises(DataError, match="not a checkpoint of this training"):
        fresh_game(tiny()).load(file)


def test_published_configurations_switch_everything_on() -> None:
    made = resolve_prior_training({"config": "paper256", "r1": 3.0}, size=256)
    assert (made.batch_size, made.r1, made.ema_rampup) == (64, 3.0, None)
    assert (made.mixing, made.path_length, made.path_length_interval) == (0.9, 2.0, 4)
    assert made.penalty_steps and made.augment_filter and made.noise
    assert resolve_prior_training({}, size=256) == PriorTraining()
    with pytest.raises(ConfigError, match="did you mean paper256"):
        resolve_prior_training({"config": "paper25"}, size=256)
