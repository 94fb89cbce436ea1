"""FIR resampling against loops, closed forms and itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
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
from tests.draws import normal
from tests.reference import resampling_loop as slow

STANDARD = [1.0, 3.0, 3.0, 1.0]
TAPS = [[1.0], [1.0, 1.0], [1.0, 2.0, 1.0], STANDARD, [1.0, 2.0, 4.0, 0.5, -1.0]]
LONG = [0.1, -0.2, 0.5, 2.0, 3.0, 1.0, 0.5, -0.3]


def test_filters_keep_constants() -> None:
    torch.testing.assert_close(make_filter(STANDARD)[1], torch.tensor([3, 9, 9, 3]) / 64)
    assert make_filter(LONG).shape == (8,)  # separable from eight taps on
    for taps in (*TAPS, LONG):
        assert float(make_filter(taps).sum()) == pytest.approx(1.0)


SIDES, FACTORS, PADS = st.integers(1, 5), st.integers(1, 3), st.integers(-1, 4)


@given(SIDES, SIDES, st.integers(1, 4), FACTORS, FACTORS, st.tuples(PADS, PADS))
@settings(max_examples=60)
def test_upfirdn_equals_its_definition(
    height: int, width: int, taps: int, up: int, down: int, pad: tuple[int, int]
) -> None:
    side = min(height, width) * up
    assume(side + min(pad[0], 0) + min(pad[1], 0) >= 1 and side + sum(pad) >= taps)
    x, kernel = normal(2, 2, height, width), normal(taps, taps, seed=1)
    found = upfirdn(x, kernel, up=up, down=down, pad=pad)
    for i, channel in np.ndindex(2, 2):
        expected = slow.upfirdn_loop(x[i, channel].numpy(), kernel.numpy(), up, down, pad)
        np.testing.assert_allclose(found[i, channel].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
def test_separable_filter_equals_its_outer_product(up: int, down: int) -> None:
    x, line = normal(2, 3, 9, 9), make_filter(LONG).double()
    one, both = (
        upfirdn(x, taps, up=up, down=down, pad=(5, 4), gain=3.0)
        for taps in (line, torch.outer(line, line))
    )
    torch.testing.assert_close(one, both)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("taps", [*TAPS, LONG])
def test_convolutions_that_resample(taps: list[float], kernel: int) -> None:
    x, weight, line = normal(1, 2, 6, 6), normal(3, 2, kernel, kernel, seed=1), np.array(taps)
    full = np.outer(line, line) / line.sum() ** 2
    for ours, loop, size in (
        (convolve_doubled, slow.convolve_doubled_loop, 12),
        (convolve_halved, slow.convolve_halved_loop, 3),
    ):
        (found,) = ours(x, weight, make_filter(taps).double())
        assert found.shape == (3, size, size)
        expected = loop(x[0].numpy(), weight.numpy(), full)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)  # filters are float32


@pytest.mark.parametrize("taps", [None, STANDARD, [1.0, 2.0, 1.0]])
def test_constants_stay_constant(taps: list[float] | None) -> None:
    """Away from the border, where zeros enter; cheap resampling has no such border."""
    filter_ = None if taps is None else make_filter(taps)
    flat = torch.full((1, 1, 16, 16), 0.7)
    margin = 0 if taps is None else 2
    for y, size in ((double(flat, filter_), 32), (halve(flat, filter_), 8)):
        assert y.shape == (1, 1, size, size)
        inner = y[..., margin : size - margin, margin : size - margin]
        torch.testing.assert_close(inner, torch.full_like(inner, 0.7))


def test_doubling_a_ramp_gives_a_ramp() -> None:
    """The filter [1, 3, 3, 1] is linear interpolation at quarter positions, closed form."""
    for taps in (make_filter(STANDARD), None):
        y = double(torch.arange(8.0).expand(1, 1, 8, 8), taps)[0, 0, 8]
        torch.testing.assert_close(y[1:15], (torch.arange(1.0, 15.0) - 0.5) / 2.0)


def test_doubling_an_impulse_gives_the_filter() -> None:
    impulse = torch.zeros(1, 1, 5, 5)
    impulse[..., 2, 2] = 1.0
    taps = make_filter(STANDARD)
    y = double(impulse, taps)[0, 0]
    torch.testing.assert_close(y[3:7, 3:7], 4.0 * taps)
    assert float(y.sum()) == pytest.approx(4.0)


def test_doubling_and_halving_with_the_box_filter_is_the_identity() -> None:
    x = normal(2, 3, 6, 6)
    box = make_filter([1.0, 1.0]).double()
    torch.testing.assert_close(halve(double(x, box), box), x)
    # Cheap halving is that of the box filter.
    torch.testing.assert_close(halve(x, box), halve(x, None))


def test_doubling_and_halving_has_a_closed_form() -> None:
    """Up: (3 x[i] + x[i-1]) / 4 and (3 x[i] + x[i+1]) / 4; down: four of them weighted 1, 3, 3, 1."""
    taps = make_filter(STANDARD).double()
    line = normal(8)
    y = halve(double(line.expand(1, 1, 8, 8), taps), taps)[0, 0, 4]
    torch.testing.assert_close(y[1:-1], (3 * line[:-2] + 10 * line[1:-1] + 3 * line[2:]) / 16)


def test_plain_convolution_keeps_the_size() -> None:
    x, weight = normal(1, 2, 5, 5), torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    weight[0, 1, 1, 1] = weight[1, 0, 1, 1] = 1.0
    torch.testing.assert_close(convolve(x, weight), x.flip(1))


@pytest.mark.parametrize("taps", [None, STANDARD, LONG])
@pytest.mark.parametrize("resample", [convolve_doubled, convolve_halved])
def test_twice_differentiable(
    resample: Callable[[Tensor, Tensor, Tensor | None], Tensor], taps: list[float] | None
) -> None:
    filter_ = None if taps is None else make_filter(taps).double()
    x = normal(1, 1, 4, 4).requires_grad_(True)
    weight = normal(1, 1, 3, 3, seed=1).requires_grad_(True)
    assert torch.autograd.gradgradcheck(lambda a, b: resample(a, b, filter_), (x, weight))
