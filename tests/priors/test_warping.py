"""Warping images: exact cases, SciPy's splines, and second derivatives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from inversight.priors.warping import SYM6, sample, warp
from tests.draws import uniform

IDENTITY = torch.eye(3)[:2]


def rough(n: int = 2, channels: int = 3, size: int = 16) -> Tensor:
    return uniform(n, channels, size, size, seed=1, dtype=torch.float64) * 2 - 1


def smooth(size: int = 48) -> Tensor:
    """Return a picture without fine detail and dark at its border, where methods may differ."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size, dtype=torch.float64)] * 2, indexing="ij")
    waves = torch.sin(4 * x + 1) * torch.cos(3 * y) + 0.5 * x * y
    return (waves * torch.exp(-((x**2 + y**2) / 0.25)))[None, None]


def maps(*entries: list[list[float]]) -> Tensor:
    return torch.tensor(entries, dtype=torch.float64)


def drift() -> float:
    """Return the distance in pixels of the filter's centre of mass from its sample.

    A wavelet with an even number of taps is never quite symmetric. Halving undoes the shift of doubling,
    except after a turn or mirroring in between.
    """
    h = np.array(SYM6)
    return float((np.arange(12) * h).sum() / h.sum() - 5.0) / 2


def moved_by_scipy(image: Tensor, a: Tensor) -> Tensor:
    """Sample cubic splines through the pixels at the map's sources, with the filter's drift."""
    size = image.shape[-1]
    centre = (size - 1) / 2
    # SciPy counts rows before columns: the map in (y, x), in pixels about the centre.
    linear = a[:, :2].flip(0, 1).numpy()
    shift = a[:, 2].flip(0).numpy() * size / 2
    off = np.full(2, drift())
    offset = centre + shift - linear @ np.full(2, centre) + linear @ off - off
    done = ndimage.affine_transform(
        image[0, 0].numpy(), linear, offset=offset, order=3, mode="mirror"
    )
    return torch.from_numpy(done)[None, None]


def test_filter_is_an_orthogonal_wavelet_with_six_moments() -> None:
    """Daubechies 1992: h is orthonormal to its even shifts, and (-1)^k k^m h_k sums to 0, m < 6."""
    h, k = np.array(SYM6), np.arange(12.0) - 5.5
    assert len(h) == 12 and h.sum() == pytest.approx(math.sqrt(2), abs=1e-10)
    for shift in range(6):
        inner = float((h[2 * shift :] * h[: len(h) - 2 * shift]).sum())
        assert inner == pytest.approx(1.0 if shift == 0 else 0.0, abs=1e-10)
    for m in range(6):
        assert float(((-1.0) ** np.arange(12) * k**m * h).sum()) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 16, 33])
def test_identity_keeps_images(channels: int, size: int) -> None:
    x = rough(channels=channels, size=size)
    torch.testing.assert_close(warp(x, IDENTITY.double().repeat(2, 1, 1)), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 2), (-2, 1), (2, 2)])
def test_whole_pixel_shifts_are_exact_and_reflect(right: int, down: int) -> None:
    x = rough(size=16)
    # Output pixel (i, j) is input pixel (i - down, j - right); 1 is half an image.
    a = maps([[1, 0, -right / 8], [0, 1, -down / 8]]).repeat(2, 1, 1)
    padded = F.pad(x, (2, 2, 2, 2), mode="reflect")
    expected = padded[..., 2 - down : 18 - down, 2 - right : 18 - right]
    torch.testing.assert_close(warp(x, a), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([[0, -1, 0], [1, 0, 0]], torch.rot90(smooth(), 1, (2, 3))),
        ([[-1, 0, 0], [0, -1, 0]], torch.rot90(smooth(), 2, (2, 3))),
        ([[0, 1, 0], [-1, 0, 0]], torch.rot90(smooth(), 3, (2, 3))),
        ([[-1, 0, 0], [0, 1, 0]], smooth().flip(3)),
    ],
)
def test_quarter_turns_and_mirroring(entries: list[list[float]], expected: Tensor) -> None:
    x = smooth()
    allowed = 2.5 * drift() * float(x.diff(dim=3).abs().max())  # 0.1 pixels, here 0.02 of 2
    torch.testing.assert_close(warp(x, maps(entries)), expected, atol=allowed, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_any_map_is_close_to_splines(seed: int) -> None:
    x = smooth()
    angle = float(uniform(1, seed=seed)) * 2 * math.pi
    a = maps([[math.cos(angle), -math.sin(angle), 0.07], [math.sin(angle), math.cos(angle), -0.12]])
    a[0, :, :2] *= torch.tensor([0.8, 1.2])
    torch.testing.assert_close(warp(x, a), moved_by_scipy(x, a[0]), atol=4e-3, rtol=0)


def test_shrinking_does_not_alias() -> None:
    """A checkerboard is too fine at half the size: only its mean remains, while sampling aliases."""
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1.0
    x, a = board[None, None].double(), maps([[2.1, 0, 0], [0, 2.1, 0]])
    grid = F.affine_grid(a, [1, 1, 32, 32], align_corners=False)
    sampled = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    largest = [float(y[..., 10:22, 10:22].abs().max()) for y in (warp(x, a), sampled)]
    assert largest[0] < 0.15 < largest[1] / 3


def test_each_image_has_its_own_map() -> None:
    x = rough(n=3)
    several = torch.stack([IDENTITY.double()] * 3)
    several[1, :, 2] = 0.25
    alone = torch.cat(list(map(warp, x.split(1), several.split(1))))
    torch.testing.assert_close(warp(x, several), alone)


def test_derivatives_of_sampling_equal_finite_differences() -> None:
    x = uniform(1, 2, 4, 5, dtype=torch.float64).requires_grad_(True)
    grid = uniform(1, 3, 3, 2, seed=1, dtype=torch.float64) * 2.4 - 1.2
    assert torch.autograd.gradcheck(lambda v: sample(v, grid), (x,))
    assert torch.autograd.gradgradcheck(lambda v: sample(v, grid).square(), (x,))
    expected = F.grid_sample(x, grid, align_corners=False)
    assert torch.equal(sample(x, grid), expected)


def test_derivatives_of_warping_equal_finite_differences() -> None:
    x = rough(n=1, channels=1, size=6).requires_grad_(True)
    a = maps([[0.9, -0.3, 0.1], [0.2, 1.1, -0.2]])
    assert torch.autograd.gradcheck(lambda v: warp(v, a), (x,))
    assert torch.autograd.gradgradcheck(lambda v: warp(v, a).square(), (x,))
