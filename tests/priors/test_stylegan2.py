"""Generator and discriminator: shapes, latents, noise, mixing, precision, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from inversight.core.config import from_mapping, to_mapping
from inversight.core.errors import ConfigError
from inversight.priors.architecture import Architecture
from inversight.priors.stylegan2 import Discriminator, Generator, initialise

KINDS: dict[str, dict[str, Any]] = {
    "fast": {"resampling": "fast"},
    "published": {"half_resolutions": 4, "conv_clamp": 256.0},
    "residual": {"generator": "resnet", "discriminator": "skip"},
    "plain": {"generator": "orig", "discriminator": "orig", "noise": False},
    "fast-residual": {"resampling": "fast", "generator": "resnet", "discriminator": "skip"},
}
HALF = {"half_resolutions": 2, "conv_clamp": 256.0}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(size: int = 16, **changes: Any) -> Architecture:
    values = {"z_dim": 6, "w_dim": 5, "mapping_depth": 2, "cmap_depth": 1} | changes
    return Architecture(**{"size": size, "channel_base": 4 * size, "channel_max": 8} | values)


def networks(architecture: Architecture) -> tuple[Generator, Discriminator]:
    generate, judge = Generator(architecture), Discriminator(architecture)
    initialise(generate, rng())
    initialise(judge, rng(1))
    return generate, judge


def latents(generate: Generator, n: int) -> Tensor:
    w: Tensor = generate.mapping(torch.randn(n, 6, generator=rng(2)))
    return w


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("kind", ["fast", "published"])
def test_shapes_at_every_size(kind: str, size: int, channels: int) -> None:
    generate, judge = networks(small(size, channel_base=2 * size, channels=channels, **KINDS[kind]))
    images = generate(latents(generate, 2))
    assert images.shape == (2, channels, size, size)
    assert judge(images).shape == (2,)
    assert bool(images.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_moves_the_output(kind: str) -> None:
    generate, judge = networks(small(**KINDS[kind]))
    images = generate(latents(generate, 4), noise="const")
    for network, value in (
        (generate, images.square().sum()),
        (judge, judge(images.detach()).square().sum()),
    ):
        gradients = torch.autograd.grad(value, list(network.parameters()))
        for (name, _), gradient in zip(network.named_parameters(), gradients, strict=True):
            assert float(gradient.abs().max()) > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_images_depend_on_their_own_latent_alone(kind: str) -> None:
    generate, _ = networks(small(**KINDS[kind]))
    w = latents(generate, 4)
    together = generate(w, noise="none")
    alone = torch.cat([generate(row[None], noise="none") for row in w])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_w_for_each_layer() -> None:
    generate, _ = networks(small(32))
    one, other = latents(generate, 2)[:1], latents(generate, 2)[1:]
    rows = one[:, None].expand(-1, generate.num_ws, -1).clone()
    torch.testing.assert_close(generate(rows), generate(one))
    seen = set()
    for i in range(generate.num_ws):  # every layer listens to its own row
        changed = rows.clone()
        changed[:, i] = other
        seen.add(round(float((generate(changed) - generate(one)).detach().abs().sum()), 3))
    assert len(seen) == generate.num_ws == 8 and 0.0 not in seen


def test_mixing_crosses_once_at_a_random_layer() -> None:
    generate, _ = networks(small(32))
    one, other = torch.zeros(3, 5), torch.ones(3, 5)
    crossovers = []
    for seed in range(40):
        ws = generate.mixed(one, other, rng=rng(seed))
        assert ws.shape == (3, generate.num_ws, 5)
        steps = ws[0, :, 0].diff()
        assert steps.sum() == 1 and (steps >= 0).all() and torch.equal(ws, ws[:1].expand(3, -1, -1))
        crossovers.append(int(steps.argmax()) + 1)
    assert set(crossovers) == set(range(1, generate.num_ws))


def test_truncation_and_its_cutoff() -> None:
    generate, _ = networks(small())
    generate.mapping.track(torch.ones(1, 5))
    mean, w = generate.mapping.w_avg, latents(generate, 3)
    half = mean + 0.5 * (w - mean)
    torch.testing.assert_close(generate.truncated(w, 0.5), half)
    torch.testing.assert_close(generate.truncated(w, 0.5, generate.num_ws), half)
    ws = generate.truncated(w, 0.5, 2)
    assert ws.shape == (3, generate.num_ws, 5)
    torch.testing.assert_close(ws[:, :2], half[:, None].expand(-1, 2, -1))
    torch.testing.assert_close(ws[:, 2:], w[:, None].expand(-1, generate.num_ws - 2, -1))


@pytest.mark.parametrize("kind", ["fast", "published"])
def test_noise_modes(kind: str) -> None:
    generate, _ = networks(small(8, **KINDS[kind]))
    w = latents(generate, 2)
    # Strengths begin at nought, so noise changes nothing until it is learnt.
    assert torch.equal(generate(w, noise="const"), generate(w, noise="none"))
    for name, parameter in generate.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(0.5)
    none, const = generate(w, noise="none"), generate(w, noise="const")
    first, again = (generate(w, noise="random", rng=rng(5)) for _ in range(2))
    assert not torch.equal(none, const)
    assert torch.equal(first, again)
    assert not torch.equal(first, generate(w, noise="random", rng=rng(6)))
    assert not torch.equal(*generate(w[:1].expand(2, -1), noise="random", rng=rng(5)))


def test_a_generator_without_noise_inputs() -> None:
    generate, _ = networks(small(8, noise=False))
    assert not any("noise" in name for name in generate.state_dict())
    w = latents(generate, 2)
    assert torch.equal(generate(w, noise="random", rng=rng()), generate(w, noise="none"))


def test_the_discriminator_projects_on_classes() -> None:
    generate, judge = networks(small(8, c_dim=3))
    c = torch.eye(3)[[0, 1, 2]]
    z = torch.randn(3, 6, generator=rng(2))
    images = generate(generate.mapping(z, c))
    logits = judge(images, c)
    assert logits.shape == (3,)
    assert not torch.allclose(logits, judge(images, c.flip(0)))
    # Projection is linear in the embedded class: the mean over classes by hand.
    features = judge.b4(*judge.b8(None, images, False))
    torch.testing.assert_close(logits, (features * judge.mapping(None, c)).sum(1) / 8**0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_near(kind: str) -> None:
    generate, judge = networks(small(32, **{**KINDS[kind], **HALF}))
    w = latents(generate, 4)
    exact, near = (generate(w, noise="const", half=half) for half in (False, True))
    assert near.dtype == torch.float32 and not torch.equal(exact, near)
    torch.testing.assert_close(near, exact, rtol=0.02, atol=0.02 * float(exact.detach().std()))
    one, other = judge(exact, half=False), judge(exact, half=True)
    assert other.dtype == torch.float32 and not torch.equal(one, other)
    torch.testing.assert_close(other, one, rtol=0.02, atol=0.02)
    assert torch.equal(generate(w), exact) and torch.equal(judge(exact), one)  # on a CPU by default


def r1(judge: Discriminator, half: bool) -> Tensor:
    """Mean squared gradient of the logits on random images."""
    dtype = next(judge.parameters()).dtype
    x = torch.randn(4, 3, 16, 16, generator=rng(3)).to(dtype).requires_grad_(True)
    (gradient,) = torch.autograd.grad(judge(x, half=half).sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def path_length(generate: Generator, half: bool) -> Tensor:
    """Mean length of w's gradient of images along random directions, a w for each layer."""
    dtype = next(generate.parameters()).dtype
    ws = torch.randn(4, generate.num_ws, 5, generator=rng(3)).to(dtype).requires_grad_(True)
    direction = torch.randn(4, 3, 16, 16, generator=rng(4)).to(dtype) / 16
    images = generate(ws, half=half)
    (gradient,) = torch.autograd.grad((images * direction).sum(), ws, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt().mean()


def gradients_of(network: Generator | Discriminator, half: bool) -> list[Tensor]:
    """The penalty's gradient for each parameter, nought for those that have no part in it."""
    parameters = list(network.parameters())
    penalty = path_length(network, half) if isinstance(network, Generator) else r1(network, half)
    found = torch.autograd.grad(penalty, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.parametrize("kind", ["fast", "published", "residual"])
def test_penalties_differentiate_as_finite_differences_say(kind: str) -> None:
    generate, judge = (network.double() for network in networks(small(16, **KINDS[kind])))
    for network in (generate, judge):
        gradients = gradients_of(network, False)
        slope = float(torch.cat([g.flatten() for g in gradients]).norm())
        ends = []
        for step in (1e-6, -2e-6):  # along the gradient, where the slope is its length
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.data.add_(gradient, alpha=step / slope)
            value = path_length(generate, False) if network is generate else r1(judge, False)
            ends.append(float(value.detach()))
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("kind", ["fast", "published", "residual"])
def test_penalties_are_differentiable_in_half_precision(kind: str) -> None:
    for network in networks(small(16, **{**KINDS[kind], **HALF})):
        exact, near = (
            torch.cat([g.flatten() for g in gradients_of(network, half)]) for half in (False, True)
        )
        assert bool(near.isfinite().all()) and not torch.equal(exact, near)
        assert float((near - exact).norm() / exact.norm()) < 0.05


def test_initialisation_belongs_to_the_seed() -> None:
    one, same, other = (Generator(small(8)) for _ in range(3))
    for network, seed in ((one, 1), (same, 1), (other, 2)):
        initialise(network, rng(seed))
    a, b, c = (torch.cat([p.flatten() for p in n.parameters()]) for n in (one, same, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_drawn(kind: str) -> None:
    for network in networks(small(16, c_dim=2, **KINDS[kind])):
        for name, tensor in network.state_dict().items():
            started = name.endswith(("bias", "noise_strength", "w_avg"))
            assert started or float(tensor.abs().max()) > 0, name


def test_architectures_are_serialisable_and_checked() -> None:
    architecture = small(16, filter_taps=(1.0, 2.0, 1.0), group=None, generator="resnet")
    assert from_mapping(Architecture, to_mapping(architecture)) == architecture
    assert architecture.image_shape == (3, 16, 16)
    for values, message in (
        ({"size": 12}, "size: expected a power of two, found 12"),
        ({"size": 8, "discriminator": "residual"}, "expected one of"),
        ({"size": 8, "filter_taps": [1.0, -1.0]}, "do not sum to 0"),
        ({"size": 8, "fmaps": 1}, "unknown setting fmaps"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_mapping(Architecture, values)
