"""The style-based networks against a slow convolution of each image with weights of its own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.priors.style import Discriminator, Generator, ModulatedConv, initialise


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_generator(size: int, channels: int, width: int = 2) -> Generator:
    made = Generator(size=size, channels=channels, width=width, z_dim=6, w_dim=5, mapping_depth=2)
    initialise(made, rng())
    return made


def modulated_slowly(x: Tensor, weight: Tensor, styles: Tensor, demodulate: bool) -> Tensor:
    """StyleGAN2, eq. 1-3, image by image: weights modulated, demodulated, then convolved."""
    out = []
    for image, style in zip(x, styles, strict=True):
        w = weight * style[None, :, None, None]
        if demodulate:
            w = w / (w.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        out.append(F.conv2d(image[None], w, padding=weight.shape[2] // 2))
    return torch.cat(out)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_modulated_convolution(demodulate: bool, kernel: int) -> None:
    layer = ModulatedConv(3, 4, kernel, demodulate=demodulate).double()
    initialise(layer, rng())
    x = torch.randn(2, 3, 6, 6, generator=rng(1), dtype=torch.float64)
    styles = torch.randn(2, 3, generator=rng(2), dtype=torch.float64)
    scale = 1.0 / math.sqrt(3 * kernel * kernel)
    expected = modulated_slowly(x, layer.weight * scale, styles, demodulate)
    torch.testing.assert_close(layer(x, styles), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 16, 32, 64, 128, 256])
def test_shapes_at_every_size(size: int, channels: int) -> None:
    generate = small_generator(size, channels)
    judge = Discriminator(size=size, channels=channels, width=2)
    initialise(judge, rng(1))
    w = generate.mapping(torch.randn(2, 6, generator=rng(2)))
    images = generate(w)
    assert images.shape == (2, channels, size, size)
    assert judge(images).shape == (2,)
    assert bool(images.isfinite().all())


def test_every_generator_parameter_moves_the_images() -> None:
    generate = small_generator(16, 3)
    images = generate(generate.mapping(torch.randn(4, 6, generator=rng(1))), noise="const")
    gradients = torch.autograd.grad(images.square().sum(), list(generate.parameters()))
    for (name, _), gradient in zip(generate.named_parameters(), gradients, strict=True):
        assert float(gradient.abs().max()) > 0, name


def test_images_depend_on_their_own_latent_alone() -> None:
    generate = small_generator(16, 1)
    w = generate.mapping(torch.randn(4, 6, generator=rng(1)))
    together = generate(w, noise="none")
    alone = torch.cat([generate(row[None], noise="none") for row in w])
    torch.testing.assert_close(together, alone)


def test_the_mapping_ignores_the_length_of_z() -> None:
    generate = small_generator(8, 1)
    z = torch.randn(3, 6, generator=rng(1))
    torch.testing.assert_close(generate.mapping(z), generate.mapping(5.0 * z))


def test_noise_modes() -> None:
    generate = small_generator(8, 1)
    w = generate.mapping(torch.randn(2, 6, generator=rng(1)))
    # Strengths begin at nought, so noise changes nothing until it is learnt.
    assert torch.equal(generate(w, noise="const"), generate(w, noise="none"))
    for layer in generate.layers:
        layer.noise_strength.data.fill_(0.5)
    none, const = generate(w, noise="none"), generate(w, noise="const")
    first, again = (generate(w, noise="random", rng=rng(5)) for _ in range(2))
    assert not torch.equal(none, const)
    assert torch.equal(first, again)
    assert not torch.equal(first, generate(w, noise="random", rng=rng(6)))


def test_the_running_mean_of_w_goes_to_the_mean() -> None:
    generate = small_generator(8, 1)
    for i in range(2000):
        generate.mapping.track(generate.mapping(torch.randn(32, 6, generator=rng(i))))
    w = generate.mapping(torch.randn(20000, 6, generator=rng(9)))
    torch.testing.assert_close(generate.mapping.w_mean, w.mean(0), atol=0.05, rtol=0)


def test_minibatch_spread_sees_copies() -> None:
    judge = Discriminator(size=8, channels=1, width=2)
    varied = torch.randn(4, 3, 4, 4, generator=rng())
    copies = varied[:1].repeat(4, 1, 1, 1)
    assert float(judge._spread(copies)[0, 0, 0, 0]) == pytest.approx(1e-4, rel=1e-3)
    by_hand = varied.var(0, unbiased=False).sqrt().mean()
    assert float(judge._spread(varied)[0, 0, 0, 0]) == pytest.approx(float(by_hand), rel=1e-4)
    assert judge._spread(varied[:3]).shape == (3, 1, 4, 4)  # any batch size


def test_initialisation_belongs_to_the_seed() -> None:
    one, same, other = (
        Generator(size=8, channels=1, width=2, z_dim=6, w_dim=5, mapping_depth=2) for _ in range(3)
    )
    for network, seed in ((one, 1), (same, 1), (other, 2)):
        initialise(network, rng(seed))
    a, b, c = (torch.cat([p.flatten() for p in n.parameters()]) for n in (one, same, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
