"""Pixel conversions against Pillow and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inversight.core.imaging import fit, to_float, to_uint8


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@given(st.integers(0, 255))
def test_uint8_round_trip(value: int) -> None:
    stored = torch.tensor([[[[value]]]], dtype=torch.uint8)
    floats = to_float(stored)
    assert float(floats) == pytest.approx(value / 255)
    assert torch.equal(to_uint8(floats), stored)
    assert to_float(floats) is floats


def test_rounding_and_clamping() -> None:
    x = torch.tensor([-1.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 2.0])
    assert to_uint8(x).tolist() == [0, 0, 1, 255, 255]


def test_grey_is_pillows_luma() -> None:
    colour = noise(6, 6, 3)
    grey = np.asarray(Image.fromarray(colour).convert("L")).astype(float)
    x = torch.from_numpy(colour).permute(2, 0, 1)[None].float()
    found = fit(x, size=6, channels=1)[0, 0].numpy()
    assert np.abs(found - grey).max() <= 1.0


def test_grey_is_repeated() -> None:
    x = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    found = fit(x, size=5, channels=3)
    assert found.shape == (2, 3, 5, 5)
    assert all(torch.equal(found[:, c], x[:, 0]) for c in range(3))


@pytest.mark.parametrize("size", [(5, 5), (32, 32), (8, 24)])
def test_resizing_is_pillows_bilinear(size: tuple[int, int]) -> None:
    grey = noise(16, 16)
    expected = Image.fromarray(grey).convert("F").resize(size[::-1], Image.Resampling.BILINEAR)
    found = fit(torch.from_numpy(grey)[None, None].float(), size=size, channels=1)
    np.testing.assert_allclose(found[0, 0].numpy(), np.asarray(expected), atol=0.01)


def test_same_shape_is_returned_unchanged_and_gradients_flow() -> None:
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    assert fit(x, size=8, channels=3) is x
    fit(x, size=4, channels=1).sum().backward()
    assert x.grad is not None
    # Each output is a weighted mean, so the gradients of a channel sum to 16 times its luma weight.
    torch.testing.assert_close(
        x.grad.sum((0, 2, 3)), 16 * torch.tensor([0.299, 0.587, 0.114]), rtol=1e-4, atol=1e-4
    )
