"""The discriminator on the target's maps: its input, its loss and its training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.adaptation.projected import Projected
from inversight.adaptation.terms import observe
from inversight.core.seeding import generator
from inversight.models.target import Target
from inversight.priors.architecture import architecture_of
from inversight.priors.game import Game, Microbatch
from tests.priors.tiny import (
    PUBLIC,
    SHAPE,
    TRAINING,
    adapted,
    convolved,
    deep,
    fresh_game,
    pictures,
    trained,
)


def projected(target: Target, *, public: Tensor = PUBLIC, seed: int = 5) -> Projected:
    return Projected(target, public, learning_rate=1e-2, rng=generator(seed))


def images(seed: int, n: int = 6) -> Tensor:
    return torch.rand(n, *SHAPE, generator=generator(seed))


def test_standardises_four_maps_by_the_public_images() -> None:
    """Against maps calculated layer by layer."""
    target = deep()
    maps = projected(target).maps
    assert maps.depths == [2, 4, 6, 8]
    x = (PUBLIC.float() / 255.0 - 0.5) / 0.5
    for depth, layer in enumerate(list(target.module.children())[:9]):
        x = layer(x)
        if depth in maps.depths:
            mean, scale = maps.moments[maps.depths.index(depth)]
            variance = x.var((0, 2, 3), unbiased=False)
            torch.testing.assert_close(mean.flatten(), x.mean((0, 2, 3)))
            torch.testing.assert_close(scale.flatten(), 1.0 / (variance + 1e-5).sqrt())
    few = projected(convolved(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Conv2d(2, 3, 3)))
    assert few.maps.depths == [0, 1]  # the middle of two is the first
    assert projected(convolved(nn.Conv2d(1, 2, 3))).maps.depths == [0]


def test_moments_are_of_all_of_many_public_images() -> None:
    """Not only of the first ones, which may be of one class."""
    dark, bright = (torch.full((1500, *SHAPE), v, dtype=torch.uint8) for v in (0, 255))
    pixel = convolved(nn.Conv2d(1, 1, 1))
    mean, _ = projected(pixel, public=torch.cat([dark, bright])).maps.moments[0]
    both = observe(pixel, torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE)])).maps[0]
    torch.testing.assert_close(mean, both.mean((0, 2, 3), keepdim=True), rtol=1e-3, atol=1e-3)


def heads_by_hand(one: Projected, x: Tensor) -> list[Tensor]:
    """The heads written out, spectral norms from a singular value decomposition."""
    maps = observe(one.maps.target, x).maps
    logits = []
    heads = zip(one.module, one.maps.depths, one.maps.moments, strict=True)
    for head, depth, (mean, scale) in heads:
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
    found = torch.stack([one(observe(one.maps.target, fake)), one.loss(real, fake)])
    term = -torch.stack([h.mean() for h in on_fake]).mean()
    hinge = [
        (1 - a).clamp_min(0).mean() + (1 + b).clamp_min(0).mean()
        for a, b in zip(on_real, on_fake, strict=True)
    ]
    expected = torch.stack([term, torch.stack(hinge).mean()])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert float(one.loss(real, real).detach()) >= 2.0  # equal images cannot be told apart


def test_passes_leave_the_spectral_norms_unchanged() -> None:
    """Only a step of training changes them, so that results do not depend on the division of a batch."""
    one = projected(deep())
    before = {k: v.clone() for k, v in one.module.state_dict().items()}
    one.loss(images(1), images(2)).backward()
    assert all(torch.equal(v, before[k]) for k, v in one.module.state_dict().items())
    one.settle()
    changed = [k for k, v in one.module.state_dict().items() if not torch.equal(v, before[k])]
    assert changed and all(k.endswith(("_u", "_v")) for k in changed)


def test_weights_come_from_the_given_generator() -> None:
    target, state = deep(), torch.get_rng_state()
    one, same, other = (projected(target, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in zip(*(m.module.parameters() for m in (one, same, other)), strict=True):
        assert torch.equal(a, b)
        assert a.numel() == 1 or not torch.equal(a, c)


def test_the_game_trains_it() -> None:
    """The game's steps lower its loss on other images of both kinds."""
    one, game = projected(deep()), Game(architecture_of(SHAPE, TRAINING), TRAINING)
    game.add_discriminator(one)
    real = torch.rand(8, *SHAPE, generator=generator(3)).mul(0.2)  # in [-1, 1]: grey

    def loss() -> float:
        return float(one.loss((real + 1) / 2, next(game.samples(8, generator(4)))).detach())

    before = loss()
    for step in range(15):
        row = game.step([Microbatch(real, generator(6, step))])
    assert max(loss(), row["second_discriminator"]) < before - 0.2


def test_microbatches_add_up() -> None:
    """A step on two microbatches applies the mean of their gradients."""
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


def test_moves_generated_maps_towards_real_ones() -> None:
    """A heavy weight and public images unlike the prior's: their mean maps come nearer."""
    target, public = deep(), (PUBLIC // 4 + 180).to(torch.uint8)

    def mean_map(images: Tensor) -> Tensor:
        return observe(target, images).maps[-1].mean((0, 2, 3))

    def distance(arm: str) -> float:
        made = adapted(
            trained(), target, arm, public=public, steps=15, learning_rate_factor=4.0, weight=10.0
        )
        return float((mean_map((pictures(made) + 1.0) / 2.0) - mean_map(public / 255.0)).norm())

    assert distance("projected") < 0.8 * distance("vanilla")
