"""Layers against slow references: weights of each image's own, groups by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inversight.core.errors import InputError
from inversight.priors.architecture import Architecture
from inversight.priors.layers import (
    Mapping,
    StyledConvolution,
    activate,
    draw,
    minibatch_spread,
    modulated,
)
from inversight.priors.resampling import make_filter
from tests.draws import normal, rng
from tests.reference import resampling_loop as slow


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_modulated_convolution(demodulate: bool, kernel: int) -> None:
    x, styles, weight = normal(2, 3, 5, 5), normal(2, 3, seed=2), normal(4, 3, kernel, kernel)
    bias = normal(4, seed=3)
    found = modulated(x, weight, styles, bias, demodulate=demodulate, gain=1.5)
    for image, style, y in zip(x, styles, found, strict=True):
        own = slow.modulate_loop(weight.numpy(), style.numpy(), demodulate)
        padded = np.pad(image.numpy(), ((0, 0), (kernel // 2,) * 2, (kernel // 2,) * 2))
        expected = 1.5 * (slow.correlate_loop(padded, own) + bias.numpy()[:, None, None])
        np.testing.assert_allclose(y.numpy(), expected, atol=1e-10)


def test_styled_layer_that_doubles() -> None:
    architecture = Architecture(size=8, w_dim=3, conv_clamp=1.5)
    layer = StyledConvolution(2, 3, 8, architecture, up=True).double()
    with torch.no_grad():
        draw(layer, rng())
        layer.bias.copy_(normal(3, seed=1))
        layer.noise_strength.fill_(0.5)
        x, w = normal(2, 2, 4, 4, seed=2), normal(2, 3, seed=3)
        found = layer(x, w, "const", None)
        styles = (w @ (layer.affine.weight / 3**0.5).T + 1.0).numpy()
    taps = make_filter((1.0, 3.0, 3.0, 1.0)).double().numpy()
    for image, style, y in zip(x.numpy(), styles, found.numpy(), strict=True):
        own = slow.modulate_loop(layer.weight.detach().numpy(), style, True)
        expected = slow.convolve_doubled_loop(image, own, taps)
        expected += 0.5 * layer.noise_const.numpy() + layer.bias.detach().numpy()[:, None, None]
        expected = np.where(expected < 0, 0.2 * expected, expected) * 2**0.5
        assert np.abs(expected).max() > 1.5  # so that the clamp is seen
        np.testing.assert_allclose(y, expected.clip(-1.5, 1.5), atol=1e-10)


@pytest.mark.parametrize("scale", [1e3, 1e-3])
def test_half_precision_neither_overflows_nor_vanishes(scale: float) -> None:
    """Features at the clamp and long styles: their product alone is beyond float16's 65,504."""
    x = 256.0 * normal(2, 64, 8, 8).clamp(-1.0, 1.0).float()
    weight, styles = normal(8, 64, 3, 3, seed=1).float(), scale * normal(2, 64, seed=2).float()
    expected, found = (modulated(y, weight, styles, torch.zeros(8)) for y in (x, x.half()))
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=1.0)


def test_activation() -> None:
    x = torch.tensor([-10.0, -1.0, 0.0, 1.0, 10.0])
    root = 2**0.5
    torch.testing.assert_close(activate(x), root * torch.tensor([-2.0, -0.2, 0.0, 1.0, 10.0]))
    torch.testing.assert_close(activate(x, 2.0), torch.tensor([-2.0, -0.2 * root, 0.0, root, 2.0]))
    assert float(activate(normal(100_000)).square().mean()) == pytest.approx(1.04, abs=0.02)


@pytest.mark.parametrize(
    ("n", "group", "channels", "size"),
    [
        (4, 4, 1, 4), (8, 4, 1, 4), (6, 3, 2, 3), (2, 4, 1, 2), (3, 4, 2, 3), (6, 4, 1, 2),
        (4, None, 1, 4),
    ],
)  # fmt: skip
def test_minibatch_spread(n: int, group: int | None, channels: int, size: int) -> None:
    x = normal(n, 4, 2, 3)
    found = minibatch_spread(x, group, channels)
    assert found.shape == (n, channels, 2, 3)
    expected = slow.spread_loop(x.numpy(), size, channels)[..., None, None]
    np.testing.assert_allclose(found.numpy(), np.broadcast_to(expected, found.shape))


def test_minibatch_spread_of_copies_is_small() -> None:
    copies = normal(1, 3, 4, 4).repeat(4, 1, 1, 1)
    assert float(minibatch_spread(copies, 4, 1)[0, 0, 0, 0]) == pytest.approx(1e-4, rel=1e-3)


def test_mapping_ignores_lengths() -> None:
    made = Mapping(z_dim=6, c_dim=3, w_dim=5, depth=2, rate=0.01, beta=0.9)
    with torch.no_grad():
        for layer in (made.embed, made.fc0, made.fc1):
            draw(layer, rng())
    z, c = normal(4, 6).float(), torch.eye(3)[[0, 1, 2, 0]]
    torch.testing.assert_close(made(z, c), made(5.0 * z, 3.0 * c))
    assert not torch.allclose(made(z, c), made(z, c.flip(1)))
    for wrong, message in ((None, "conditioned on 3 classes"), (c[:, :2], "found 2")):
        with pytest.raises(InputError, match=message):
            made(z, wrong)


def test_running_mean_of_w() -> None:
    made = Mapping(z_dim=6, c_dim=0, w_dim=5, depth=1, rate=0.01, beta=0.5)
    made.track(torch.full((4, 5), 8.0))
    made.track(torch.full((4, 5), 2.0))
    torch.testing.assert_close(made.w_avg, torch.full((5,), 3.0))  # (0 + 8) / 2 = 4, (4 + 2) / 2


def test_noise_of_fast_resampling_has_the_lower_resolution() -> None:
    for resampling, size in (("fast", 4), ("fir", 8)):
        architecture = Architecture(size=8, resampling=resampling)  # type: ignore[arg-type]
        made = StyledConvolution(2, 2, 8, architecture, up=True)
        assert made.noise_const.shape == (size, size)
