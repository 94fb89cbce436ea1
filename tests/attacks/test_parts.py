"""Parts of white-box attacks: descent, constraints, and the terms of each paper."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from inversight.attacks import Gmi, IfGmi, Lomma, Vmi
from inversight.attacks.constraints import Coordinates, project_to_l1_ball
from inversight.attacks.files import PICTURES, move_pictures
from inversight.attacks.mi_face import MiFace, statistics_gap, total_variation
from inversight.core.seeding import generator
from inversight.models.activations import record_batch_norms
from inversight.models.target import Target
from inversight.priors.descent import descend, ramp
from tests.attacks.toy import (
    LABELS,
    Answering,
    FlatPrior,
    GreyPrior,
    Nearest,
    OpenPrior,
    levels,
    toy_target,
)


def sgd(rate: float, momentum: float = 0.0) -> object:
    return lambda v: torch.optim.SGD(v, lr=rate, momentum=momentum)


def test_descent_sums_all_parts_of_the_loss() -> None:
    def losses(v: Sequence[Tensor]) -> Iterator[Tensor]:
        yield (v[0] - 1.0).square()
        yield v[1].square()
        yield (v[0] + v[1]).square()

    start = [torch.tensor([[3.0]]), torch.tensor([[-2.0]])]
    one, two = descend(start, losses, optimiser=sgd(0.1), steps=1)  # type: ignore[arg-type]
    torch.testing.assert_close(one, torch.tensor([[3.0 - 0.1 * (4.0 + 2.0)]]))
    torch.testing.assert_close(two, torch.tensor([[-2.0 - 0.1 * (-4.0 + 2.0)]]))
    assert start[0].item() == 3.0 and not one.requires_grad


def test_descent_keeps_constraints_and_scales_its_steps() -> None:
    def losses(v: Sequence[Tensor]) -> list[Tensor]:
        return [v[0].sum(1)]

    (bounded,) = descend(
        [torch.zeros(2, 3)], losses, optimiser=sgd(1.0), steps=9,  # type: ignore[arg-type]
        constrain=lambda v: [v[0].clamp_min(-2.5)],
    )  # fmt: skip
    assert torch.equal(bounded, torch.full((2, 3), -2.5))
    (scaled,) = descend(
        [torch.zeros(1, 1)], losses, optimiser=sgd(1.0), steps=4,  # type: ignore[arg-type]
        rate=lambda done: done,
    )  # fmt: skip
    assert float(scaled) == pytest.approx(-(0.25 + 0.5 + 0.75 + 1.0))


def test_the_ramp_rises_and_falls() -> None:
    assert ramp(0.025) == pytest.approx(0.5) and ramp(0.05) == ramp(0.75) == 1.0
    assert ramp(0.875) == pytest.approx(0.5) and ramp(1.0) == 0.0


def test_coordinates_are_standardised_and_invertible() -> None:
    latents = 3.0 + 2.0 * torch.randn(50, 2, 3, generator=generator(0))
    latents[:, 0, 0] = 7.0
    space = Coordinates.of(latents)
    points = space.points(latents)
    assert points.shape == (50, 6) and space.width == 6
    torch.testing.assert_close(points.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    expected = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(points.std(0, correction=0), expected)
    torch.testing.assert_close(space.latents(points), latents)


def test_projection_to_the_l1_ball_equals_bisection() -> None:
    """The nearest point of the ball is a soft threshold, found here by bisection."""
    away = torch.randn(20, 3, 4, generator=generator(0), dtype=torch.float64)
    centres = torch.randn(20, 3, 4, generator=generator(1), dtype=torch.float64)
    found = project_to_l1_ball(centres + away, centres, 4.0)
    for row, centre, mine in zip(away, centres, found, strict=True):
        low, high = 0.0, float(row.abs().max())
        for _ in range(80):
            middle = (low + high) / 2.0
            outside = float((row.abs() - middle).clamp_min(0.0).sum()) > 4.0
            low, high = (middle, high) if outside else (low, middle)
        inside = float(row.abs().sum()) <= 4.0
        expected = row if inside else row.sign() * (row.abs() - high).clamp_min(0.0)
        torch.testing.assert_close(mine, centre + expected)
    assert float((found - centres).flatten(1).abs().sum(1).max()) < 4.0 + 1e-9


def test_points_inside_the_l1_ball_do_not_move() -> None:
    centres = torch.rand(4, 5, generator=generator(0))
    points = centres + 0.1 * torch.rand(4, 5, generator=generator(1))
    assert torch.equal(project_to_l1_ball(points, centres, 1.0), points)
    assert torch.equal(project_to_l1_ball(centres, centres, 1.0), centres)


# The papers' own terms

SMALL = {"pool": 200, "candidates": 5, "keep": 2, "crops": 2, "steps": 40}


def test_gmi_follows_the_critic() -> None:
    """Its images are the brighter, the less identity weighs."""
    target = toy_target(Nearest())
    weak, strong = (
        Gmi(**SMALL, identity_weight=weight, learning_rate=0.05 / weight, bound=2.0)
        .run(target, OpenPrior(), LABELS, rng=generator(0))
        .images.mean()
        for weight in (0.1, 100.0)
    )
    assert float(weak) > float(strong) + 0.1


def test_lomma_keeps_features_near_their_mean() -> None:
    """Two classes on one axis: the logit grows without end, the features hold it back where
    weight x d(feature distance) = d(logit), in closed form."""

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(1, 2, bias=False)
            self.last.weight.data = torch.tensor([[1.0], [-1.0]])

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(torch.logit(x.flatten(1).mean(1, keepdim=True)))
            return out

    target = Target(Line(), ("a", "b"), (1, 8, 8), (0.0,), (1.0,), "line")
    for weight in (0.5, 2.0):
        how = Lomma(**SMALL, feature_weight=weight, bound=9.0, learning_rate=5e-4, surrogates=0)
        found = how.run(target, GreyPrior(), torch.tensor([0, 1]), rng=generator(0))
        # d/df (-f + weight (f - usual)^2) = 0 at f = usual + 1 / (2 weight); usual is about 0.
        expected = torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None] / (2.0 * weight)
        torch.testing.assert_close(found.latents, expected, atol=0.2, rtol=0)


@pytest.mark.parametrize("family", ["gaussian", "flow"])
def test_vmi_finds_the_closed_form_gaussian(family: Literal["gaussian", "flow"]) -> None:
    """-log p = a/2 |z - c|^2 + a constant: q has mean a c / (a + g) and variance g / (a + g)."""
    if family == "flow":
        pytest.importorskip("zuko")
    a, g, c = 0.2, 0.1, torch.tensor([1.5, -1.0])

    def answer(x: Tensor) -> Tensor:
        z = torch.logit(levels(x).clamp(1e-6, 1 - 1e-6))
        loss = 0.5 * a * (z - c).square().sum(1) + 0.01
        return torch.stack([-loss, torch.log(-torch.expm1(-loss))], dim=1)

    target = toy_target(Answering(answer))
    how = Vmi(
        pool=20000, samples=48, steps=200, learning_rate=0.04, divergence_weight=g, family=family,
        couplings=2, hidden=8, candidates=1500, keep=1500, crops=1, batch_size=2000,
    )  # fmt: skip
    z = how.run(target, FlatPrior(), torch.tensor([0]), rng=generator(0)).latents
    torch.testing.assert_close(z.mean(0), a * c / (a + g), atol=0.06, rtol=0)
    spread = torch.eye(2) * g / (a + g)
    torch.testing.assert_close(torch.cov(z.T), spread, atol=0.05, rtol=0)


def test_if_gmi_stays_within_its_balls() -> None:
    """W of two coordinates: with radius 256 an L1 ball of 1 for W, and of 2 for W and levels then."""
    target, label = toy_target(Nearest()), torch.tensor([0])
    how = IfGmi(**{**SMALL, "candidates": 1, "keep": 1}, layer_steps=5, learning_rate=1.0)

    def latents(radius: float, layers: int) -> Tensor:
        one = replace(how, radius=radius, layers=layers)
        found = one.run(target, OpenPrior(), label, rng=generator(0))
        if radius < 1.0:  # nothing moves, so that images are those of the latents
            torch.testing.assert_close(found.images, FlatPrior()(found.latents))
        return found.latents

    def moved(found: Tensor) -> float:
        return float((found - start).abs().sum())

    start = latents(1e-6, 0)
    torch.testing.assert_close(latents(1e-6, 1), start)
    assert 0.9 < moved(latents(256.0, 0)) <= 1.0 + 1e-5
    assert moved(latents(256.0, 1)) <= 3.0 + 1e-5
    assert moved(latents(1000.0, 0)) > 1.1


def test_features_reach_beyond_the_latents() -> None:
    """The first block squashes to the middle; only features beyond it reach the class's levels."""

    class Squashed(OpenPrior):
        def __call__(self, latents: Tensor) -> Tensor:
            return self.finish(self.until(1, latents), latents)

        def until(self, block: int, latents: Tensor, start: object = None) -> object:  # type: ignore[override]
            made = super().until(block, latents)
            return replace(made, features=0.4 + 0.2 * made.features)

    target = toy_target(Nearest())
    how = IfGmi(**SMALL, layer_steps=60, learning_rate=0.02)
    with_layer, without = (
        target(replace(how, layers=n).run(target, Squashed(), LABELS, rng=generator(0)).images)
        for n in (1, 0)
    )
    own = LABELS.repeat_interleave(2)[:, None]
    assert bool((with_layer.gather(1, own) > without.gather(1, own) + 0.5).all())


def test_total_variation_by_hand() -> None:
    x = torch.tensor([[[[1.0, 3.0], [0.0, 7.0]]]])
    # Across, down, and both diagonals.
    expected = math.hypot(2, 7) + math.hypot(1, 4) + 3.0 + 6.0
    assert float(total_variation(x)) == pytest.approx(expected)
    assert float(total_variation(torch.ones(3, 1, 4, 4))) == 0.0


def test_statistics_gap_by_hand() -> None:
    norm = nn.BatchNorm2d(2).eval()
    norm.running_mean = torch.tensor([1.0, 0.0])
    norm.running_var = torch.tensor([1.0, 4.0])
    x = torch.randn(5, 2, 3, 3, generator=generator(0))
    network = nn.Sequential(norm, nn.BatchNorm2d(2, track_running_stats=False))
    with record_batch_norms(network) as layers:
        network(x)
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    expected = (mean - norm.running_mean).norm() + (variance - norm.running_var).norm()
    assert len(layers) == 1
    torch.testing.assert_close(statistics_gap(layers[0]), expected)
    network(x)
    assert len(layers) == 1  # no longer recorded


def test_pixels_match_the_running_statistics() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1).eval()
            self.norm.running_mean = torch.tensor([0.3])
            self.norm.running_var = torch.tensor([0.01])

        def forward(self, x: Tensor) -> Tensor:
            level = self.norm(x).mean((1, 2, 3))
            return torch.stack([level, -level], dim=1) * 0.01

    target = Target(Normed().eval(), ("a", "b"), (1, 8, 8), (0.0,), (1.0,), "normed")
    how = MiFace(candidates=4, keep=4, crops=1, group=4, steps=150, learning_rate=0.02)
    found = how.run(target, FlatPrior(), torch.tensor([0]), rng=generator(0)).images
    assert float(found.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(found.var()) == pytest.approx(0.01, abs=0.004)
    assert float(found.min()) >= 0.0 and float(found.max()) <= 1.0


def test_moves_images_of_a_class_named_like_a_path(tmp_path: Path) -> None:
    file = Path(PICTURES, "top/cat.png", "a-0001.png")
    (tmp_path / "new" / file).parent.mkdir(parents=True)
    (tmp_path / "new" / file).touch()
    move_pictures(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / file).is_file()
