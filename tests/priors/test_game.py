"""One step of the game: losses, averages, penalties, style mixing, guidance, microbatches, checkpoints."""

from __future__ import annotations

import math
from functools import partialmethod
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.core.errors import ConfigError, DataError
from inversight.core.seeding import generator
from inversight.priors.architecture import Architecture, architecture_of
from inversight.priors.augment import augment
from inversight.priors.game import Game, Microbatch
from inversight.priors.penalties import r1_penalty
from inversight.settings import PriorTraining, resolve_prior_training
from tests.priors.tiny import (
    REAL,
    SHAPE,
    FixedGuidance,
    assert_same,
    batch,
    fresh_game,
    new_game,
    play,
    state,
    tiny,
)


def updates(optimiser: torch.optim.Optimizer) -> int:
    return max(int(s["step"]) for s in optimiser.state_dict()["state"].values())


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("rampup", "done", "half_life"), [(0.05, 20, 4), (0.5, 20, 40), (None, 20, 50), (0.05, 1, 0.2)]
)
def test_ramp_up_bounds_the_half_life_of_the_average(
    rampup: float | None, done: int, half_life: float
) -> None:
    game = fresh_game(ema_images=50.0, ema_rampup=rampup)
    for network, value in ((game.average, 0.0), (game.generator, 1.0)):
        for parameter in network.parameters():
            parameter.data.fill_(value)
    game.done = done  # of four images
    game._update_average(4)
    for parameter in game.average.parameters():
        expected = torch.full_like(parameter, 1 - 0.5 ** (4 / half_life))
        torch.testing.assert_close(parameter.data, expected)


def test_the_average_copies_buffers() -> None:
    game = fresh_game()
    game.step(batch(3))
    for mine, theirs in zip(game.average.buffers(), game.generator.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    assert float(game.average.mapping.w_avg.abs().max()) > 0


@pytest.mark.parametrize("own_steps", [False, True])
def test_penalties_join_a_step_or_take_their_own(own_steps: bool) -> None:
    game = fresh_game(path_length=2.0, path_length_interval=3, penalty_steps=own_steps)
    for i in range(6):
        game.step(batch(3, i))
    # R1 on steps 0, 2, 4 and path lengths on 0, 3.
    assert updates(game.optimise_d) == (9 if own_steps else 6)
    assert updates(game.optimise_g) == (8 if own_steps else 6)
    assert game.path_length.mean > 0


def test_a_penalty_of_weight_0_takes_no_step() -> None:
    games = [fresh_game(r1=0.0, penalty_steps=own_steps) for own_steps in (True, False)]
    for game in games:
        game.optimise_g = torch.optim.SGD(game.generator.parameters(), lr=1e-3)
        game.step(batch(3))
    assert_same(*map(state, games))


@pytest.mark.parametrize(("path_length", "share"), [(0.0, 1.0), (2.0, 4 / 5)])
def test_optimisers_have_the_lazy_correction(path_length: float, share: float) -> None:
    game = fresh_game(
        r1_interval=16, path_length=path_length, path_length_interval=4, learning_rate=2e-3
    )
    for optimiser, factor in ((game.optimise_g, share), (game.optimise_d, 16 / 17)):
        (group,) = optimiser.param_groups
        assert group["lr"] == pytest.approx(2e-3 * factor)
        assert group["betas"] == pytest.approx((0.0, 0.99**factor))


def test_each_step_trains_one_network() -> None:
    game = fresh_game()
    states = [state(game)]
    game._step_discriminators(batch(3))
    states.append(state(game))
    game._step_generator(batch(4), None)
    states.append(state(game))
    for (before, after), name in zip(pairwise(states), "dg", strict=True):
        changed = {n for n in before if not torch.equal(before[n], after[n])}
        assert changed and all(n.startswith(name) for n in changed)


@pytest.mark.parametrize("more", [{}, {"new_latents": True}, {"images_at_once": 2}])
def test_the_generator_is_trained_on_the_images_that_were_judged(more: dict[str, Any]) -> None:
    """By the gradient of its loss on them, after the discriminator's step; or on others, if asked for."""
    game = fresh_game(**more)
    game.control.p = 0.0
    made: list[Tensor] = []
    images_of, applied = game._images, game._apply

    def images(ws: Tensor, rng: torch.Generator) -> Tensor:
        made.append(images_of(ws, rng))
        return made[-1]

    found: list[Tensor] = []

    def apply(optimiser: torch.optim.Optimizer) -> None:
        if optimiser is game.optimise_g:
            found.extend(gradients(game.generator))
            last = F.softplus(-game._judge(made[-1])[0]).mean()
            weights = [p for p in game.generator.parameters() if p.grad is not None]
            expected.extend(torch.autograd.grad(last, weights))
        applied(optimiser)

    expected: list[Tensor] = []
    with (
        patch.object(game, "_images", images),
        patch.object(game, "_apply", apply),
        patch.object(torch.Tensor, "backward", partialmethod(Tensor.backward, retain_graph=True)),
    ):
        game.step(batch(3))
    assert len(made) == (2 if more else 1)
    torch.testing.assert_close(found, expected)


def test_r1_uses_images_before_the_published_augmentation() -> None:
    """By the chain rule on a discriminator that is linear: D(x) = sum(v x), so |grad| is known."""
    game = fresh_game(augment_filter=True)
    game.control.p = 0.8
    v = torch.randn(1, *SHAPE, generator=generator(5))
    game.discriminator.outputs = lambda images, sets: (v * images).sum((1, 2, 3))[:, None]  # type: ignore[method-assign]
    logits, _, images = game._judge_real(batch(6)[0], follow=True)
    assert torch.equal(images, REAL[:4])
    found = float(r1_penalty(logits, images).detach())

    def logits_of(images: Tensor) -> Tensor:
        return game._judge_real(batch(6, images=images)[0], follow=False)[0]

    # The transpose of the augmentation, which is affine in the images: pixel by pixel.
    units = torch.eye(64).view(64, 1, *SHAPE).expand(-1, 4, -1, -1, -1)
    zero = logits_of(torch.zeros(4, *SHAPE))
    slopes = torch.stack([logits_of(unit) - zero for unit in units])
    assert found == pytest.approx(float(slopes.square().sum(0).mean()), rel=1e-3)


def test_without_the_filter_r1_uses_what_the_discriminator_sees() -> None:
    game = fresh_game()
    game.control.p = 1.0
    logits, _, images = game._judge_real(batch(6)[0], follow=True)
    assert not torch.allclose(images, REAL[:4], atol=0.1)
    torch.testing.assert_close(logits, game.discriminator(images))


def test_styles_are_mixed_with_the_given_probability() -> None:
    game = fresh_game(mixing=0.9)
    mixed, crossovers = 0, set()
    for i in range(300):
        w, ws = game._latents(2, generator(8, i), None)
        if ws.dim() == 3:
            mixed += 1
            same = (ws == w[:, None]).all(2).all(0)
            assert bool(same[0]) and not bool(same[-1])
            crossovers.add(int(same.sum()))
    assert abs(mixed / 300 - 0.9) < 4 * math.sqrt(0.09 / 300)
    assert crossovers == set(range(1, game.generator.num_ws))
    _, plain = fresh_game()._latents(2, generator(8), None)
    assert plain.dim() == 2


def test_guidance_of_zero_changes_nothing() -> None:
    plain, guided = fresh_game(), fresh_game()
    plain.step(batch(3))
    guided.step(batch(3), FixedGuidance(torch.zeros_like))
    assert_same(state(plain), state(guided), rtol=1e-5, atol=1e-6)


def test_guidance_gets_images_in_0_1_and_moves_them_against_its_gradient() -> None:
    darken = FixedGuidance(torch.ones_like)
    plain, guided = fresh_game(), fresh_game()
    for i in range(20):
        plain.step(batch(3, i))
        guided.step(batch(3, i), darken)
    assert all(float(x.min()) >= 0.0 and float(x.max()) <= 1.0 for x in darken.seen)
    w = torch.randn(16, 5, generator=generator(9))
    with torch.no_grad():
        assert float(guided.generator(w).mean()) < float(plain.generator(w).mean()) - 0.05


def test_guidance_can_augment_as_the_discriminator_is_augmented() -> None:
    game, guidance = fresh_game(), FixedGuidance(torch.zeros_like)
    game.control.p = 0.8
    (part,) = batch(3)
    game.step([part], guidance)
    found, x = guidance.batches[0].augment, guidance.seen[0]
    assert found is not None
    game.control.p, before = 0.6, part.rng.get_state()
    made = found(x)
    part.rng.set_state(before)
    expected = augment(2 * x - 1, 0.6, part.rng, mirror=game.training.mirror)
    torch.testing.assert_close(2 * made - 1, expected)
    assert not torch.allclose(made, x)


def test_uniform_latents_are_those_of_the_training_only() -> None:
    game = Game(architecture_of(REAL.shape[1:], tiny()), tiny(), uniform_latents=True)
    seen: list[Tensor] = []
    for network in (game.generator, game.average):
        network.mapping.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for i in range(20):
        game.step(batch(3, i))
    z = torch.cat(seen)
    assert len(z) >= 20 * len(REAL[:4]) and float(z.min()) >= 0.0 and float(z.max()) < 1.0
    assert float(z.mean()) == pytest.approx(0.5, abs=0.05)
    seen.clear()
    assert len(next(iter(game.samples(64, generator(0))))) == 64
    assert float(seen[0].min()) < 0.0


@pytest.mark.parametrize("gan", [True, False])
def test_guidance_gets_norms_on_the_generators_parameters(gan: bool) -> None:
    """Against the gradients that backward leaves on the parameters, of either alone."""
    game, guidance = fresh_game(), FixedGuidance(torch.ones_like, times=0.0 if gan else 1.0)
    if not gan:  # the GAN's gradient on images vanishes
        nn.init.zeros_(game.discriminator.b4.out.weight)
    norms: list[float] = []

    def step() -> None:
        norms.append(float(torch.stack([g.norm() for g in gradients(game.generator)]).norm()))

    game.optimise_g.step = step  # type: ignore[method-assign,assignment]
    game._step_generator(batch(4), guidance)
    ((of_gan, of_term),) = guidance.measured
    assert norms == [pytest.approx(of_gan if gan else of_term, rel=1e-4)]


def test_gradients_of_microbatches_are_averaged() -> None:
    seen: list[list[Tensor]] = []

    class Recording(Game):
        def _apply(self, optimiser: torch.optim.Optimizer) -> None:
            seen.append(gradients(self.discriminator))

    for parts in ((0, 1), (0,), (1,)):
        game = fresh_game(Recording)
        game.control.p = 0.5
        game._step_discriminators(
            [Microbatch(REAL[4 * i : 4 * i + 4], generator(3 + i)) for i in parts]
        )
    together, *alone = seen
    for whole, one, other in zip(together, *alone, strict=True):
        torch.testing.assert_close(whole, (one + other) / 2)


def test_rejects_microbatches_that_do_not_divide_the_batch() -> None:
    assert new_game(images_at_once=2).at_once == 2
    assert new_game(images_at_once=64).at_once == 4
    with pytest.raises(ConfigError, match=r"prior\.images_at_once: expected a divisor of the 4"):
        new_game(images_at_once=3)


def test_rejects_checkpoint_of_other_networks(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    fresh_game().save(file, {})
    with pytest.raises(DataError, match="go on with the settings it began with"):
        new_game(width=3).load(file)
    file.write_text("no checkpoint")
    with pytest.raises(DataError, match="not a checkpoint of this training"):
        fresh_game().load(file)


@pytest.mark.parametrize(
    "changes", [{}, {"resampling": "fir", "noise": False}, {"discriminator": "skip", "group": 2}]
)
def test_a_game_of_any_architecture(changes: dict[str, Any]) -> None:
    values = {"channel_base": 16, "z_dim": 7, "w_dim": 5, "channels": 1} | changes
    architecture = Architecture(size=8, **values)
    game = Game(architecture, tiny(noise=True))
    assert len(play(game, steps=3)) == 3
    assert game.average.architecture == game.discriminator.architecture == architecture


def test_published_configurations_switch_everything_on() -> None:
    found = resolve_prior_training({"config": "paper256", "r1": 3.0}, size=256)
    assert (found.batch_size, found.r1, found.ema_rampup) == (64, 3.0, None)
    assert (found.mixing, found.path_length, found.path_length_interval) == (0.9, 2.0, 4)
    assert found.penalty_steps and found.augment_filter and found.noise
    assert resolve_prior_training({}, size=256) == PriorTraining()
    with pytest.raises(ConfigError, match="did you mean paper256"):
        resolve_prior_training({"config": "paper25"}, size=256)
