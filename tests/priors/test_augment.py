"""Adaptive augmentation: limiting cases, derivatives, and the published maps image by image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag, expm
from torch import Tensor

from inversight.priors.augment import OverfittingControl, _colour, _geometry, augment
from tests.draws import rng, uniform


def images(n: int = 6, channels: int = 3, size: int = 8) -> Tensor:
    return uniform(n, channels, size, size, seed=1) * 2 - 1


@pytest.mark.parametrize("filtered", [False, True])
def test_probability_zero_is_the_identity(filtered: bool) -> None:
    x = images()
    assert torch.equal(augment(x, 0.0, rng(), filtered=filtered), x)


def test_small_probability_is_close_to_the_identity() -> None:
    x = images(size=16)
    torch.testing.assert_close(augment(x, 1e-9, rng(), filtered=True), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_probability_one_changes_every_image_and_is_differentiable(
    channels: int, filtered: bool
) -> None:
    x = images(channels=channels).requires_grad_(True)
    y = augment(x, 1.0, rng(), filtered=filtered)
    assert y.shape == x.shape
    assert bool(((y - x).abs().flatten(1).amax(1) > 1e-3).all())
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert bool((gradient.abs().flatten(1).amax(1) > 0).all())
    assert bool(gradient.isfinite().all())


def test_depends_on_the_seed() -> None:
    x = images()
    assert torch.equal(augment(x, 0.5, rng(3)), augment(x, 0.5, rng(3)))
    assert not torch.equal(augment(x, 0.5, rng(3)), augment(x, 0.5, rng(4)))


def test_small_probability_changes_few_images() -> None:
    x = images(n=400, channels=1)
    y = augment(x, 0.01, rng())
    changed = ((y - x).abs().flatten(1).amax(1) > 1e-3).float().mean()
    # Ten kinds, some of which do nothing half of the time, each with probability 0.01.
    assert 0.02 < float(changed) < 0.15


def test_geometry_keeps_a_constant_image_constant() -> None:
    y = augment(torch.full((50, 1, 8, 8), 0.25), 1.0, rng()).flatten(1)
    assert float((y.amax(1) - y.amin(1)).max()) < 1e-5  # reflection adds no other values


def test_mirroring_can_be_switched_off() -> None:
    # Pictures bright on the left: large rotations are rare, so most of those bright right are mirrored.
    left = (torch.arange(16) < 8).float().expand(300, 1, 16, 16)

    bright_right = []
    for mirror in (False, True):
        a, b = (x.mean((1, 2, 3)) for x in augment(left, 0.2, rng(2), mirror=mirror).split(8, 3))
        bright_right.append(int((b > a + 0.3).sum()))
    assert bright_right[0] < bright_right[1] / 2


@pytest.mark.parametrize(
    ("updates", "p"),
    [
        ([(100, 100)], 0.1),  # 100 of 1000 images
        ([(100, 100), (-50, 50)], 0.05),
        ([(100, 100)] + [(-100, 100)] * 2, 0.0),
        ([(100, 100)] * 11, 1.0),
        ([(100, 100), (0, 0)], 0.1),
    ],
)
def test_control_follows_the_sign(updates: list[tuple[int, int]], p: float) -> None:
    control = OverfittingControl(target=0.6, images=1000)
    for signs, seen in updates:
        control.see(float(signs), seen)
        control.update()
    assert control.p == pytest.approx(p)


@pytest.mark.parametrize(("right", "change"), [(79, -1), (81, 1)])
def test_control_aims_at_the_target_sign(right: int, change: int) -> None:
    """With 80 of 100 real images called real the mean sign is 0.6, the published target."""
    control = OverfittingControl(target=0.6, images=500_000, p=0.5)
    for part in (right // 2, right - right // 2):
        control.see(float(part - (50 - part)), 50)
    control.update()
    assert control.p == pytest.approx(0.5 + change * 100 / 500_000)


class Draws:
    """The random numbers in the order in which the published pipeline uses them."""

    def __init__(self, n: int, p: float, seed: int) -> None:
        self.n, self.p, self.rng = n, p, rng(seed)

    def chosen(self, value: Tensor, otherwise: float, p: float | None = None) -> np.ndarray:
        """Return ``value`` with probability p, else ``otherwise``, for each image."""
        hit = torch.rand(self.n, generator=self.rng) < (self.p if p is None else p)
        hit = hit.view(-1, *[1] * (value.dim() - 1))
        return torch.where(hit, value, torch.tensor(otherwise)).double().numpy()

    def coin(self) -> np.ndarray:
        return self.chosen((torch.rand(self.n, generator=self.rng) < 0.5).float(), 0.0)

    def angle(self, p: float | None = None) -> np.ndarray:
        uniform = torch.rand(self.n, generator=self.rng) * 2 - 1
        return self.chosen(uniform * math.pi, 0.0, p)

    def factor(self, octaves: float) -> np.ndarray:
        return self.chosen(torch.exp2(self.normal() * octaves), 1.0)

    def normal(self, *more: int) -> Tensor:
        return torch.randn(self.n, *more, generator=self.rng)


def turn(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])


@pytest.mark.parametrize("p", [1.0, 0.4])
def test_geometry_is_the_published_product_of_maps(p: float) -> None:
    """Karras et al. 2020 (ADA), appendix B, image by image, in pixels from the centre."""
    n, size = 5, 16
    d = Draws(n, p, 3)
    flip = d.coin()
    quarter = d.chosen(torch.randint(4, (n,), generator=d.rng).float(), 0.0)
    whole = d.chosen((torch.rand(n, 2, generator=d.rng) * 2 - 1) * 0.125, 0.0)
    scale = d.factor(0.2)
    p_turn = 1 - math.sqrt(1 - p)
    before, stretch, after = d.angle(p_turn), d.factor(0.2), d.angle(p_turn)
    part = d.chosen(d.normal(2) * 0.125, 0.0)
    found = _geometry(n, size, p, rng(3), True).double().numpy()
    for i in range(n):
        m = np.diag([1 - 2 * flip[i], 1, 1])
        m = m @ turn(quarter[i] * math.pi / 2)
        m = m @ shift(*np.round(whole[i] * size))
        m = m @ np.diag([scale[i], scale[i], 1]) @ turn(before[i])
        m = m @ np.diag([stretch[i], 1 / stretch[i], 1]) @ turn(after[i])
        m = m @ shift(*(part[i] * size))
        m[:2, 2] /= size / 2  # in halves of an image
        np.testing.assert_allclose(found[i], m[:2], atol=1e-5)


@pytest.mark.parametrize("p", [1.0, 0.4])
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_the_published_product_of_maps(channels: int, p: float) -> None:
    """Homogeneous 4 x 4 maps of each pixel's colour; a grey one is the mean of the three results."""
    n, size = 5, 4
    x = images(n=n, channels=channels, size=size)
    d = Draws(n, p, 3)
    bright = d.chosen(d.normal() * 0.2, 0.0)
    contrast, flip, hue, saturation = d.factor(0.5), d.coin(), np.zeros(n), np.ones(n)
    if channels == 3:
        hue, saturation = d.angle(), d.factor(1.0)
    found = _colour(x, p, rng(3), invert_grey=True).double().numpy()
    v = np.array([1, 1, 1, 0]) / math.sqrt(3)
    for i in range(n):
        m = np.eye(4)
        m[:3, 3] = bright[i]
        m = np.diag([contrast[i]] * 3 + [1]) @ m
        m = (np.eye(4) - 2 * flip[i] * np.outer(v, v)) @ m  # Householder's reflection
        m = about_grey(hue[i]) @ m
        m = (np.outer(v, v) + (np.eye(4) - np.outer(v, v)) * saturation[i]) @ m
        pixels = x[i].double().numpy().reshape(channels, -1)
        pixels = np.broadcast_to(pixels, (3, size * size))
        colours = (m @ np.vstack([pixels, np.ones(size * size)]))[:3]
        expected = colours if channels == 3 else colours.mean(0, keepdims=True)
        np.testing.assert_allclose(found[i].reshape(channels, -1), expected, atol=1e-5)


def about_grey(angle: float) -> np.ndarray:
    """Return the rotation about (1, 1, 1), the matrix exponential of its generator."""
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return block_diag(expm(axis * angle), 1.0)


def test_luma_is_inverted_for_a_quarter_of_images() -> None:
    """Red and grey move alike: luma differs by (1/3 - 1/4) contrast, with a sign if it is inverted."""
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(400, -1, 2, 2)
    y, g = (
        _colour(x, 0.5, rng(4), invert_grey=True)[:, :, 0, 0]
        for x in (red, torch.full((400, 3, 2, 2), 0.25))
    )
    assert float((g - g.mean(1, keepdim=True)).abs().max()) < 1e-6  # grey stays grey
    d = Draws(400, 0.5, 4)
    d.chosen(d.normal() * 0.2, 0.0)
    contrast = torch.from_numpy(d.factor(0.5))
    difference = (y.mean(1) - g.mean(1)).double()
    torch.testing.assert_close(difference.abs(), contrast / 12, atol=1e-5, rtol=0)
    inverted = (difference < 0).float().mean()
    assert 0.18 < float(inverted) < 0.32  # a half of a half


def test_bilinear_quarter_turns_and_mirroring_are_exact() -> None:
    """Found among many draws without the filter."""
    x = images(n=1, channels=1, size=8)
    many = x.expand(6000, -1, -1, -1)
    y = augment(many, 0.2, rng(5))
    wanted = [torch.rot90(v, k, (2, 3)) for v in (x, x.flip(3)) for k in range(4)]
    hits = torch.stack([(y - w).abs().flatten(1).amax(1) < 1e-5 for w in wanted])
    assert bool(hits.any(1).all())


def test_r1_through_the_filter_equals_finite_differences() -> None:
    """The gradient's squared length, differentiated again, by finite differences."""
    x = images(n=1, channels=1, size=6).double().requires_grad_(True)
    weight = uniform(1, 1, 6, 6, seed=2, dtype=torch.float64)

    def penalty(v: Tensor) -> Tensor:
        seen = augment(v, 0.7, rng(6), filtered=True)
        (gradient,) = torch.autograd.grad((weight * seen**3).sum(), v, create_graph=True)
        return gradient.square().sum()

    assert torch.autograd.gradcheck(penalty, (x,), atol=1e-4, rtol=1e-3)
