"""Random transformations: their bounds, and one draw for all images."""

from __future__ import annotations

import torch
from torch import Tensor

from inversight.models.transformations import Transformations
from tests.draws import rng, uniform

NOTHING = {"least_area": 1.0, "brightness": 0.0, "contrast": 0.0, "degrees": 0.0}
IMAGES = uniform(6, 3, 8, 8)


def changed(images: Tensor, seed: int, *, mirror: bool = False, **settings: float) -> Tensor:
    return Transformations(**settings)(images, rng(seed), mirror=mirror)


def test_change_nothing_or_mirror_half_of_the_time() -> None:
    torch.testing.assert_close(changed(IMAGES, 0, **NOTHING), IMAGES)
    shown = [changed(IMAGES, i, mirror=True, **NOTHING) for i in range(40)]
    mirrored = [torch.allclose(one, IMAGES.flip(3)) for one in shown]
    assert 8 < sum(mirrored) < 32  # half of them, within 4 deviations
    assert all(m or torch.allclose(one, IMAGES) for one, m in zip(shown, mirrored, strict=True))


def test_one_draw_for_all_images() -> None:
    shown = changed(IMAGES, 4, mirror=True)
    assert shown.shape == IMAGES.shape
    assert float(shown.min()) >= 0.0 and float(shown.max()) <= 1.0
    assert not torch.allclose(shown, IMAGES, atol=0.02)
    torch.testing.assert_close(changed(IMAGES[2:3], 4, mirror=True), shown[2:3])
    x = IMAGES.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(changed(x, 4, mirror=True).sum(), x)
    assert bool((gradient.flatten(1).abs().sum(1) > 0).all())


def test_brightness_and_crop_stay_in_their_bounds() -> None:
    flat = torch.full((1, 1, 32, 32), 0.5)
    bright = NOTHING | {"brightness": 0.2}
    levels = torch.stack([changed(flat, i, **bright).mean() for i in range(50)])
    assert 0.4 <= float(levels.min()) < 0.42 and 0.58 < float(levels.max()) <= 0.6
    # A ramp from 0 to 1: the range of a crop of area a is its side, sqrt(a).
    ramp = torch.linspace(0.0, 1.0, 32).expand(1, 1, 32, 32)
    shown = [changed(ramp, i, **NOTHING | {"least_area": 0.25}) for i in range(50)]
    ranges = torch.stack([one.max() - one.min() for one in shown])
    assert 0.45 < float(ranges.min()) < 0.6 and float(ranges.max()) > 0.95
