"""Generator and discriminator: shapes, latents, noise, mixing, precision, gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from inversight.core.config import from_mapping, to_mapping
from inversight.core.errors import ConfigError
from inversight.priors.architecture import Architecture
from inversight.priors.penalties import PathLength, r1_penalty
from inversight.priors.stylegan2 import Discriminator, Generator, initialise
from tests.draws import rng

KINDS: dict[str, dict[str, Any]] = {
    "fast": {"resampling": "fast"},
    "published": {"half_resolutions": 4, "conv_clamp": 256.0},
    "residual": {"generator": "resnet", "discriminator": "skip"},
    "plain": {"generator": "orig", "discriminator": "orig", "noise": False},
    "fast-residual": {"resampling": "fast", "generator": "resnet", "discriminator": "skip"},
}
HALF = {"half_resolutions": 2, "conv_clamp": 256.0}


def small(size: int = 16, **changes: Any) -> Architecture:
    defaults = {"z_dim": 6, "w_dim": 5, "mapping_depth": 2, "cmap_depth": 1, "channel_max": 8}
    return Architecture(**{"size": size, "channel_base": 4 * size} | defaults | changes)


def networks(architecture: Architecture) -> tuple[Generator, Discriminator]:
    generate, judge = Generator(architecture), Discriminator(architecture)
    initialise(generate, rng())
    initialise(judge, rng(1))
    return generate, judge


def latents(generate: Generator, n: int) -> Tensor:
    w: Tensor = generate.mapping(torch.randn(n, 6, generator=rng(2)))
    return w


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 16, 64, 256])
@pytest.mark.parametrize("kind", ["fast", "published"])
def test_shapes_at_every_size(kind: str, size: int, channels: int) -> None:
    generate, judge = networks(small(size, channel_base=2 * size, channels=channels, **KINDS[kind]))
    images = generate(latents(generate, 2))
    assert images.shape == (2, channels, size, size)
    assert judge(images).shape == (2,)
    assert bool(images.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_affects_the_output(kind: str) -> None:
    generate, judge = networks(small(**KINDS[kind]))
    images = generate(latents(generate, 4), noise="const")
    for network, output in ((generate, images), (judge, judge(images.detach()))):
        gradients = torch.autograd.grad(output.square().sum(), list(network.parameters()))
        for (name, _), gradient in zip(network.named_parameters(), gradients, strict=True):
            assert float(gradient.abs().max()) > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_generated_independently(kind: str) -> None:
    generate, _ = networks(small(**KINDS[kind]))
    w = latents(generate, 4)
    alone = torch.cat([generate(row, noise="none") for row in w.split(1)])
    torch.testing.assert_close(generate(w, noise="none"), alone, rtol=1e-4, atol=1e-5)


def test_each_layer_uses_its_own_w() -> None:
    generate, _ = networks(small(32))
    one, other = latents(generate, 2).split(1)
    rows = one[:, None].expand(-1, generate.num_ws, -1).clone()
    torch.testing.assert_close(generate(rows), generate(one))
    seen = set()
    for i in range(generate.num_ws):
        changed = rows.clone()
        changed[:, i] = other
        seen.add(round(float((generate(changed) - generate(one)).detach().abs().sum()), 3))
    assert len(seen) == generate.num_ws == 8 and 0.0 not in seen


def test_mixing_switches_once_at_a_random_layer() -> None:
    generate, _ = networks(small(32))
    layers, seen = torch.arange(generate.num_ws), set()
    for seed in range(40):
        ws = generate.mixed(torch.zeros(3, 5), torch.ones(3, 5), rng=rng(seed))
        seen.add(crossover := int((ws[0, :, 0] == 0).sum()))
        assert torch.equal(ws, (layers >= crossover).float()[None, :, None].expand(3, -1, 5))
    assert seen == set(range(1, generate.num_ws))


def test_truncation_and_its_cutoff() -> None:
    generate, _ = networks(small())
    generate.mapping.track(torch.ones(1, 5))
    mean, w = generate.mapping.w_avg, latents(generate, 3)
    half = mean + 0.5 * (w - mean)
    for cutoff in (None, generate.num_ws):
        torch.testing.assert_close(generate.truncated(w, 0.5, cutoff), half)
    expected = torch.stack([half] * 2 + [w] * (generate.num_ws - 2), dim=1)
    torch.testing.assert_close(generate.truncated(w, 0.5, 2), expected)


@pytest.mark.parametrize("kind", ["fast", "published"])
def test_noise_modes(kind: str) -> None:
    generate, _ = networks(small(8, **KINDS[kind]))
    w = latents(generate, 2)
    # Strengths start at 0, so noise has no effect before training.
    assert torch.equal(generate(w, noise="const"), generate(w, noise="none"))
    for name, parameter in generate.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(0.5)
    assert not torch.equal(generate(w, noise="const"), generate(w, noise="none"))
    first, again, other = (generate(w, noise="random", rng=rng(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(*generate(w[:1].expand(2, -1), noise="random", rng=rng(5)))


def test_generator_without_noise_inputs() -> None:
    generate, _ = networks(small(8, noise=False))
    assert not any("noise" in name for name in generate.state_dict())
    w = latents(generate, 2)
    assert torch.equal(generate(w, noise="random", rng=rng()), generate(w, noise="none"))


def test_discriminator_projects_on_classes() -> None:
    generate, judge = networks(small(8, c_dim=3))
    c = torch.eye(3)
    images = generate(generate.mapping(torch.randn(3, 6, generator=rng(2)), c))
    logits = judge(images, c)
    assert logits.shape == (3,) and not torch.allclose(logits, judge(images, c.flip(0)))
    # Projection is linear in the embedded class: the mean over classes by hand.
    features = judge.b4(*judge.b8(None, images, False))
    torch.testing.assert_close(logits, (features * judge.mapping(None, c)).sum(1) / 8**0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_close(kind: str) -> None:
    generate, judge = networks(small(32, **{**KINDS[kind], **HALF}))
    w = latents(generate, 4)
    exact, near = (generate(w, noise="const", half=half) for half in (False, True))
    assert near.dtype == torch.float32 and not torch.equal(exact, near)
    torch.testing.assert_close(near, exact, rtol=0.02, atol=0.02 * float(exact.detach().std()))
    one, other = judge(exact, half=False), judge(exact, half=True)
    assert other.dtype == torch.float32 and not torch.equal(one, other)
    torch.testing.assert_close(other, one, rtol=0.02, atol=0.02)
    assert torch.equal(generate(w), exact) and torch.equal(judge(exact), one)  # on a CPU by default


def penalty(network: Generator | Discriminator, half: bool = False) -> Tensor:
    """Return R1 on random images, or the mean path length of random w for each layer."""
    dtype = next(network.parameters()).dtype
    if isinstance(network, Discriminator):
        x = torch.randn(4, 3, 16, 16, generator=rng(3)).to(dtype).requires_grad_(True)
        return r1_penalty(network(x, half=half), x)
    ws = torch.randn(4, network.num_ws, 5, generator=rng(3)).to(dtype).requires_grad_(True)
    path = PathLength(decay=0.0)
    return path.penalty(network(ws, half=half), ws, rng(4))[0]


def gradients_of(network: Generator | Discriminator, half: bool) -> list[Tensor]:
    """Return the penalty's gradient for each parameter, 0 for those that it does not depend on."""
    parameters = list(network.parameters())
    return list(
        torch.autograd.grad(
            penalty(network, half), parameters, allow_unused=True, materialize_grads=True
        )
    )


@pytest.mark.parametrize("kind", ["fast", "published", "residual"])
def test_penalty_gradients_equal_finite_differences(kind: str) -> None:
    for network in networks(small(16, **KINDS[kind])):
        gradients = gradients_of(network.double(), False)
        slope, ends = float(flat(gradients).norm()), []
        for step in (1e-6, -2e-6):  # along the gradient, where the slope is its length
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.data.add_(gradient, alpha=step / slope)
            ends.append(float(penalty(network).detach()))
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("kind", ["fast", "published", "residual"])
def test_penalties_are_differentiable_in_half_precision(kind: str) -> None:
    for network in networks(small(16, **{**KINDS[kind], **HALF})):
        exact, near = (flat(gradients_of(network, half)) for half in (False, True))
        assert bool(near.isfinite().all()) and not torch.equal(exact, near)
        assert float((near - exact).norm() / exact.norm()) < 0.05


def test_initialisation_depends_on_the_seed() -> None:
    drawn = []
    for seed in (1, 1, 2):
        network = Generator(small(8))
        initialise(network, rng(seed))
        drawn.append(flat(network.parameters()))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_drawn(kind: str) -> None:
    for network in networks(small(16, c_dim=2, **KINDS[kind])):
        for name, tensor in network.state_dict().items():
            started = name.endswith(("bias", "noise_strength", "w_avg"))
            assert started or float(tensor.abs().max()) > 0, name


def test_architectures_are_serialisable() -> None:
    architecture = small(16, filter_taps=(1.0, 2.0, 1.0), group=None, generator="resnet")
    assert from_mapping(Architecture, to_mapping(architecture)) == architecture
    assert architecture.image_shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 12}, "size: expected a power of two, found 12"),
        ({"size": 8, "discriminator": "residual"}, "expected one of"),
        ({"size": 8, "filter_taps": [1.0, -1.0]}, "do not sum to 0"),
        ({"size": 8, "fmaps": 1}, "unknown setting fmaps"),
    ],
)
def test_rejects_invalid_architectures(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(Architecture, values)
