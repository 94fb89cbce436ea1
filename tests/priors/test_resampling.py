"""FIR resampling against loops, closed forms and itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inversight.priors.resampling import (
    convolve,
    convolve_doubled,
    convolve_halved,
    double,
    halve,
    make_filter,
    upfirdn,
)
from tests.reference.resampling_loop import (
    convolve_doubled_loop,
    convolve_halved_loop,
    upfirdn_loop,
)

TAPS = [[1.0], [1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 3.0, 3.0, 1.0], [1.0, 2.0, 4.0, 0.5, -1.0]]
LONG = [0.1, -0.2, 0.5, 2.0, 3.0, 1.0, 0.5, -0.3]


def normal(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def both_axes(taps: list[float]) -> Tensor:
    line = torch.tensor(taps, dtype=torch.float64)
    line = line / line.sum()
    return torch.outer(line, line)


def test_filters_keep_constants() -> None:
    torch.testing.assert_close(
        make_filter([1.0, 3.0, 3.0, 1.0])[1], torch.tensor([3, 9, 9, 3]) / 64
    )
    assert make_filter(LONG).shape == (8,)  # separable from eight taps on
    for taps in (*TAPS, LONG):
        assert float(make_filter(taps).sum()) == pytest.approx(1.0)


@given(
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    taps=st.integers(1, 4),
    up=st.integers(1, 3),
    down=st.integers(1, 3),
    before=st.integers(-1, 4),
    after=st.integers(-1, 4),
)
@settings(max_examples=60)
def test_upfirdn_is_its_definition(
    height: int, width: int, taps: int, up: int, down: int, before: int, after: int
) -> None:
    if min(height, width) * up + min(before, 0) + min(after, 0) < 1:
        return
    if min(height, width) * up + before + after < taps:
        return
    x, kernel = normal(2, 2, height, width), normal(taps, taps, seed=1)
    found = upfirdn(x, kernel, up=up, down=down, pad=(before, after))
    for i, channel in np.ndindex(2, 2):
        image = x[i, channel].numpy()
        expected = upfirdn_loop(image, kernel.numpy(), up, down, (before, after))
        np.testing.assert_allclose(found[i, channel].numpy(), expected, atol=1e-12)


def test_a_separable_filter_is_its_outer_product() -> None:
    x, line = normal(2, 3, 9, 9), make_filter(LONG).double()
    for up, down in ((1, 1), (2, 1), (1, 2)):
        torch.testing.assert_close(
            upfirdn(x, line, up=up, down=down, pad=(5, 4), gain=3.0),
            upfirdn(x, torch.outer(line, line), up=up, down=down, pad=(5, 4), gain=3.0),
        )


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("taps", [*TAPS, LONG])
def test_convolutions_that_resample(taps: list[float], kernel: int) -> None:
    x, weight = normal(1, 2, 6, 6), normal(3, 2, kernel, kernel, seed=1)
    line, full = make_filter(taps).double(), both_axes(taps).numpy()
    image, flat = x[0].numpy(), weight.numpy()
    doubled, halved = convolve_doubled(x, weight, line), convolve_halved(x, weight, line)
    assert doubled.shape == (1, 3, 12, 12) and halved.shape == (1, 3, 3, 3)
    # Filters are float32, as published.
    expected = convolve_doubled_loop(image, flat, full)
    np.testing.assert_allclose(doubled[0].numpy(), expected, atol=1e-6)
    expected = convolve_halved_loop(image, flat, full)
    np.testing.assert_allclose(halved[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("taps", [None, [1.0, 3.0, 3.0, 1.0], [1.0, 2.0, 1.0]])
def test_constants_stay_constant(taps: list[float] | None) -> None:
    """Away from the border, where zeros come in; the cheap kind has no such border."""
    filter_ = None if taps is None else make_filter(taps)
    flat = torch.full((1, 1, 16, 16), 0.7)
    margin = 0 if taps is None else 2
    for y, size in ((double(flat, filter_), 32), (halve(flat, filter_), 8)):
        assert y.shape == (1, 1, size, size)
        inner = y[..., margin : size - margin, margin : size - margin]
        torch.testing.assert_close(inner, torch.full_like(inner, 0.7))


def test_a_ramp_doubles_to_a_ramp() -> None:
    """The filter [1, 3, 3, 1] is linear interpolation at quarter positions, closed form."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    expected = (torch.arange(16.0) - 0.5) / 2.0
    for taps in (make_filter([1.0, 3.0, 3.0, 1.0]), None):
        y = double(ramp, taps)[0, 0, 8]
        torch.testing.assert_close(y[1:15], expected[1:15])


def test_an_impulse_shows_the_filter() -> None:
    impulse = torch.zeros(1, 1, 5, 5)
    impulse[..., 2, 2] = 1.0
    taps = make_filter([1.0, 3.0, 3.0, 1.0])
    y = double(impulse, taps)[0, 0]
    torch.testing.assert_close(y[3:7, 3:7], 4.0 * taps)
    assert float(y.sum()) == pytest.approx(4.0)


def test_up_then_down_with_the_box_filter_is_the_identity() -> None:
    x = normal(2, 3, 6, 6)
    box = make_filter([1.0, 1.0]).double()
    torch.testing.assert_close(halve(double(x, box), box), x)
    # The cheap halving is the box filter's.
    torch.testing.assert_close(halve(x, box), halve(x, None))


def test_up_then_down_smooths_by_a_closed_form() -> None:
    """Up gives (3 x[i] + x[i-1]) / 4 and (3 x[i] + x[i+1]) / 4, down weighs four of them 1, 3, 3, 1."""
    taps = make_filter([1.0, 3.0, 3.0, 1.0]).double()
    line = normal(8)
    y = halve(double(line.expand(1, 1, 8, 8), taps), taps)[0, 0, 4]
    torch.testing.assert_close(y[1:-1], (3 * line[:-2] + 10 * line[1:-1] + 3 * line[2:]) / 16)


def test_a_plain_convolution_keeps_the_size() -> None:
    x, weight = normal(1, 2, 5, 5), torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    weight[0, 1, 1, 1] = weight[1, 0, 1, 1] = 1.0
    torch.testing.assert_close(convolve(x, weight), x.flip(1))


@pytest.mark.parametrize("taps", [None, [1.0, 3.0, 3.0, 1.0], LONG])
@pytest.mark.parametrize("resample", [convolve_doubled, convolve_halved])
def test_twice_differentiable(
    resample: Callable[[Tensor, Tensor, Tensor | None], Tensor], taps: list[float] | None
) -> None:
    filter_ = None if taps is None else make_filter(taps).double()
    x = normal(1, 1, 4, 4).requires_grad_(True)
    weight = normal(1, 1, 3, 3, seed=1).requires_grad_(True)
    assert torch.autograd.gradgradcheck(lambda a, b: resample(a, b, filter_), (x, weight))
