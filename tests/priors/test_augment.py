"""Adaptive augmentation: identity where it must be, differentiable, in its documented ranges."""

from __future__ import annotations

import pytest
import torch

from inversight.priors.augment import OverfittingControl, augment


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 6, channels: int = 3, size: int = 8) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=rng(1)) * 2 - 1


def test_never_is_the_identity() -> None:
    x = images()
    assert torch.equal(augment(x, 0.0, rng()), x)


@pytest.mark.parametrize("channels", [1, 3])
def test_always_changes_every_image_and_is_differentiable(channels: int) -> None:
    x = images(channels=channels).requires_grad_(True)
    y = augment(x, 1.0, rng())
    assert y.shape == x.shape
    assert bool(((y - x).abs().flatten(1).amax(1) > 1e-3).all())
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert bool((gradient.abs().flatten(1).amax(1) > 0).all())
    assert bool(gradient.isfinite().all())


def test_the_seed_decides() -> None:
    x = images()
    assert torch.equal(augment(x, 0.5, rng(3)), augment(x, 0.5, rng(3)))
    assert not torch.equal(augment(x, 0.5, rng(3)), augment(x, 0.5, rng(4)))


def test_rarely_leaves_most_images_alone() -> None:
    x = images(n=400, channels=1)
    y = augment(x, 0.01, rng())
    changed = ((y - x).abs().flatten(1).amax(1) > 1e-3).float().mean()
    # Ten kinds, some of which do nothing half of the time, each with probability 0.01.
    assert 0.02 < float(changed) < 0.15


def test_a_grey_picture_stays_grey_under_geometry_alone() -> None:
    flat = torch.full((50, 1, 8, 8), 0.25)
    y = augment(flat, 1.0, rng())
    spread = y.flatten(1).amax(1) - y.flatten(1).amin(1)
    assert float(spread.max()) < 1e-5  # reflection at the border brings in nothing foreign


def test_mirroring_off_never_mirrors() -> None:
    # A picture bright on its left: without rotation by much, more mirrored rows would be bright right.
    left = torch.zeros(300, 1, 16, 16)
    left[:, :, :, :8] = 1.0

    def bright_right(mirror: bool) -> float:
        y = augment(left, 0.2, rng(2), mirror=mirror)
        return float((y[..., 8:].mean((1, 2, 3)) > y[..., :8].mean((1, 2, 3)) + 0.3).float().mean())

    assert bright_right(False) < bright_right(True) / 2


def test_control_follows_the_sign() -> None:
    control = OverfittingControl(target=0.6, images=1000)
    control.see(torch.ones(100))
    control.update()
    assert control.p == pytest.approx(0.1)  # 100 of 1000 images
    control.see(-torch.ones(50))
    control.update()
    assert control.p == pytest.approx(0.05)
    for _ in range(10):
        control.see(-torch.ones(100))
        control.update()
    assert control.p == 0.0
    for _ in range(20):
        control.see(torch.ones(100))
        control.update()
    assert control.p == 1.0


def test_control_without_images_stays() -> None:
    control = OverfittingControl(target=0.6, images=1000, p=0.3)
    control.update()
    assert control.p == 0.3
