"""The discriminator on the target's maps: what it sees, how it is trained, that it can be resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.adaptation import WeightedTerm, guidance_terms
from inversight.adaptation.projected import Projected
from inversight.adaptation.terms import observe
from inversight.core.errors import ConfigError
from inversight.core.seeding import generator
from inversight.models.target import Target
from inversight.priors import StylePrior
from inversight.priors.architecture import architecture_of
from inversight.priors.game import Game, Microbatch
from inversight.settings import Adaptation
from tests.priors.tiny import (
    PUBLIC,
    SHAPE,
    TRAINING,
    Stopped,
    adapted,
    convolved,
    deep,
    fresh_game,
    linear_target,
    pictures,
    stop_at,
)


def projected(target: Target, *, public: Tensor = PUBLIC, seed: int = 5) -> Projected:
    return Projected(target, public, learning_rate=1e-2, rng=generator(seed))


def images(seed: int, n: int = 6) -> Tensor:
    return torch.rand(n, *SHAPE, generator=generator(seed))


def test_it_judges_by_four_maps_that_the_public_images_standardise() -> None:
    """Against maps calculated layer by layer."""
    target = deep()
    one = projected(target)
    assert one.maps.depths == [2, 4, 6, 8]
    x = (PUBLIC.float() / 255.0 - 0.5) / 0.5
    for depth, layer in enumerate(list(target.module.children())[:9]):
        x = layer(x)
        if depth in one.maps.depths:
            mean, scale = one.maps.moments[one.maps.depths.index(depth)]
            torch.testing.assert_close(mean.flatten(), x.mean((0, 2, 3)))
            torch.testing.assert_close(
                scale.flatten(), 1.0 / (x.var((0, 2, 3), unbiased=False) + 1e-5).sqrt()
            )
    few = projected(convolved(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Conv2d(2, 3, 3)))
    assert few.maps.depths == [0, 1]  # the middle of two is the first
    assert projected(convolved(nn.Conv2d(1, 2, 3))).maps.depths == [0]


def test_all_of_many_public_images_have_a_say() -> None:
    """Not only the first ones, which may be of one class."""
    dark, bright = (torch.full((1500, *SHAPE), v, dtype=torch.uint8) for v in (0, 255))
    pixel = convolved(nn.Conv2d(1, 1, 1))
    mean, _ = projected(pixel, public=torch.cat([dark, bright])).maps.moments[0]
    both = observe(pixel, torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE)])).maps[0]
    torch.testing.assert_close(mean, both.mean((0, 2, 3), keepdim=True), rtol=1e-3, atol=1e-3)


def heads_by_hand(one: Projected, x: Tensor) -> list[Tensor]:
    """The heads written out, spectral norms from a singular value decomposition."""
    maps = observe(one.maps.target, x).maps
    logits = []
    for head, depth, (mean, scale) in zip(
        one.module, one.maps.depths, one.maps.moments, strict=True
    ):
        f = (maps[depth] - mean) * scale
        for number, options in ((0, {}), (2, {"stride": 2, "padding": 1}), (4, {})):
            weight = head[number].parametrizations.weight.original.detach()
            norm = torch.linalg.matrix_norm(weight.flatten(1), ord=2)
            f = F.conv2d(f, weight / norm, head[number].bias, **options)
            f = F.leaky_relu(f, 0.2) if number < 4 else f
        logits.append(f)
    return logits


def test_term_and_loss_are_a_hinge_on_spectrally_normalised_heads() -> None:
    one = projected(deep())
    for _ in range(200):
        one.settle()  # until the power iteration has converged
    real, fake = images(1), images(2)
    on_real, on_fake = heads_by_hand(one, real), heads_by_hand(one, fake)
    expected = torch.stack([h.mean() for h in on_fake]).mean()
    torch.testing.assert_close(one(observe(one.maps.target, fake)), -expected, rtol=1e-3, atol=1e-4)
    hinge = [
        (1 - a).clamp_min(0).mean() + (1 + b).clamp_min(0).mean()
        for a, b in zip(on_real, on_fake, strict=True)
    ]
    torch.testing.assert_close(
        one.loss(real, fake), torch.stack(hinge).mean(), rtol=1e-3, atol=1e-4
    )
    assert float(one.loss(real, real).detach()) >= 2.0  # nobody tells apart what is the same


def test_passes_alone_change_nothing() -> None:
    """Only a step of training does, so that results do not hang on how a batch is shared out."""
    one = projected(deep())
    before = {k: v.clone() for k, v in one.module.state_dict().items()}
    one.loss(images(1), images(2)).backward()
    assert all(torch.equal(v, before[k]) for k, v in one.module.state_dict().items())
    one.settle()
    changed = [k for k, v in one.module.state_dict().items() if not torch.equal(v, before[k])]
    assert changed and all(k.endswith(("_u", "_v")) for k in changed)


def test_weights_come_from_the_generator_given() -> None:
    target, state = deep(), torch.get_rng_state()
    one, same, other = (projected(target, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in zip(*(m.module.parameters() for m in (one, same, other)), strict=True):
        assert torch.equal(a, b)
        assert a.numel() == 1 or not torch.equal(a, c)


def test_the_game_teaches_it_to_tell_real_from_generated() -> None:
    """The game's steps lower its loss on other images of both kinds."""
    one = projected(deep())
    game = Game(architecture_of(SHAPE, TRAINING), TRAINING)
    game.add_discriminator(one)
    real = torch.rand(8, *SHAPE, generator=generator(3)).mul(0.2)  # in [-1, 1]: grey
    before = float(one.loss((real + 1) / 2, next(game.samples(8, generator(4)))).detach())
    for step in range(30):
        row = game.step([Microbatch(real, generator(6, step))])
    after = float(one.loss((real + 1) / 2, next(game.samples(8, generator(4)))).detach())
    assert after < before - 0.2 and row["second_discriminator"] < before - 0.2


def test_shares_of_a_batch_add_up() -> None:
    """A step on two shares is the step of the mean gradient: as on both at once, with equal draws."""
    seen: list[list[Tensor]] = []

    class Recording(Game):
        def _apply(self, optimiser: torch.optim.Optimizer) -> None:
            seen.append([p.grad.clone() for p in optimiser.param_groups[0]["params"]])

    parts = [(images(1), 3), (images(2), 4)]
    for some in (parts, parts[:1], parts[1:]):
        game = fresh_game(Recording)
        game.add_discriminator(projected(deep()))
        game._step_discriminators([Microbatch(x, generator(seed)) for x, seed in some])
    together, first, second = seen[1::2]  # the game's own, then the second, each time
    for whole, a, b in zip(together, first, second, strict=True):
        torch.testing.assert_close(whole, (a + b) / 2)


def test_the_arm_pulls_generated_maps_towards_real_ones(prior: StylePrior) -> None:
    """A heavy weight and public images unlike the prior's: their mean maps come nearer."""
    target = deep()
    public = (PUBLIC // 4 + 180).to(torch.uint8)

    def mean_maps(arm: str) -> Tensor:
        weight = 10.0 if arm == "projected" else None
        made = adapted(prior, target, arm, public=public, steps=60, weight=weight)
        shown = (pictures(made) + 1.0) / 2.0
        return observe(target, shown).maps[-1].mean((0, 2, 3))

    goal = observe(target, public.float() / 255.0).maps[-1].mean((0, 2, 3))
    plain, pulled = ((mean_maps(arm) - goal).norm() for arm in ("vanilla", "projected"))
    assert pulled < 0.8 * plain


def test_a_stopped_adaptation_goes_on_bit_by_bit(prior: StylePrior, tmp_path: Path) -> None:
    whole = adapted(prior, deep(), "projected")
    options: dict[str, Any] = {
        "training": replace(TRAINING, checkpoint_seconds=1e-6),
        "checkpoint": tmp_path / "checkpoint.safetensors",
    }
    with pytest.raises(Stopped):
        adapted(prior, deep(), "projected", **options, progress=stop_at(4))
    resumed = adapted(prior, deep(), "projected", **options)
    assert torch.equal(pictures(resumed), pictures(whole))
    assert resumed.log == whole.log and "projected" in whole.log[-1]


def test_no_weight_is_vanilla(prior: StylePrior) -> None:
    made = [
        pictures(adapted(prior, deep(), arm, weight=weight))
        for arm, weight in (("projected", 0.0), ("vanilla", None))
    ]
    assert torch.equal(*made)


def test_what_it_needs(prior: StylePrior) -> None:
    with pytest.raises(ConfigError, match="arm projected needs a target with convolutions"):
        adapted(prior, linear_target(1), "projected")
    with pytest.raises(ConfigError, match="needs the term made for the target"):
        guidance_terms("projected", Adaptation(), None)
    term = projected(deep())
    assert guidance_terms("projected", Adaptation(), None, term) == [WeightedTerm(term, 3.0)]
