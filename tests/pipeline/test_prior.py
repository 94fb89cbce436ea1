"""The Frechet distance that a prior in training is watched with."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from inversight.core.errors import ConfigError
from inversight.embeddings.pixel import Pixel
from inversight.pipeline.prior import FrechetToPublic, check_watched, monitor_of

CPU = torch.device("cpu")
PIXEL = Pixel((4, 4))


def public(n: int = 60) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 1, 4, 4), generator=rng).to(torch.uint8)


def by_definition(a: Tensor, b: Tensor) -> float:
    """|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)), with SciPy's matrix root."""
    x, y = (torch.cat(PIXEL(v), dim=1).double().numpy() for v in (a, b))
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(s @ t + 1e-12 * np.eye(len(s))).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root))


def test_equals_the_definition_for_any_batch_size() -> None:
    made = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(2)) * 0.5
    distance = FrechetToPublic(public(), PIXEL, CPU)
    expected = by_definition(public().float() / 255, made)
    assert distance(iter(made.split(7))) == pytest.approx(expected, rel=1e-3)
    assert distance(iter(made.split(50))) == pytest.approx(expected, rel=1e-3)
    assert distance(iter([public().float() / 255])) == pytest.approx(0.0, abs=1e-8)


def test_uses_at_most_so_many_public_images() -> None:
    seen: list[int] = []

    class Counting:
        name = "counting"

        def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
            seen.append(len(images))
            return (images.flatten(1)[:, :3],)

    distance = FrechetToPublic(public(200), Counting(), CPU, most=50)
    for _ in range(2):
        distance(iter([torch.rand(20, 1, 4, 4)]))
    assert sum(seen) == 50 + 20 + 20  # the public images once


def test_returns_nan_for_nan_and_for_a_single_image() -> None:
    distance = FrechetToPublic(public(), PIXEL, CPU)
    assert math.isnan(distance(iter([torch.full((9, 1, 4, 4), float("nan"))])))
    assert math.isnan(distance(iter([torch.zeros(1, 1, 4, 4)])))


@pytest.mark.parametrize(("size", "compared"), [(8, 8), (1024, 64)])
def test_names(tmp_path: Path, size: int, compared: int) -> None:
    images = torch.zeros(1, 1, size, size, dtype=torch.uint8)
    found = [
        monitor_of(tmp_path, images, features=name, network=None, device=CPU).distance
        for name in ("none", "pixel")
    ]
    assert found == [None, FrechetToPublic(images, Pixel((compared, compared)), CPU)]
    check_watched("package.module:Class")
    with pytest.raises(ConfigError, match="did you mean pixel"):
        check_watched("pixels")
    with pytest.raises(ConfigError, match="expected one of public, inception, pixel, none"):
        check_watched("lpips-vgg")
