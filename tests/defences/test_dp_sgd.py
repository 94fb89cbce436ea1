"""Clipping, noise and sampling of private steps, and nothing private beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import nn

from inversight.core.errors import InputError
from inversight.core.seeding import generator
from inversight.defences import DPSGD
from inversight.defences.dp_sgd import PrivateSteps, mean_cross_entropy, noise_multiplier
from inversight.models.training import Batch
from tests.defences.problem import (
    QUICK,
    SHORT,
    accuracy,
    defend,
    images,
    network,
    same,
    training_data,
)  # fmt: skip
from tests.refusals import refused

pytest.importorskip("opacus", reason="opacus is not installed")

GIVEN = training_data(training=SHORT)
NOBODY = torch.zeros(0, dtype=torch.int64)


def step(rows: torch.Tensor, noise: float, clip: float, seed: int = 0) -> torch.Tensor:
    """One private step of size 1; returns by how much it moved each parameter."""
    calls: list[int] = []
    module = network(norm="group")
    start = flat(module.parameters())
    steps = PrivateSteps(noise=noise, clip=clip, images=10, on_step=lambda: calls.append(1))
    optimiser, release = steps.prepare(module, torch.optim.SGD(module.parameters(), lr=1.0), seed)
    data = images(1).select(rows)
    optimiser.zero_grad()
    mean_cross_entropy(module, Batch(data.floats(), data.labels, 0.0, generator(0))).backward()
    optimiser.step()
    release()
    assert len(calls) == 1
    return start - flat(module.parameters())


def flat(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in parts])


@pytest.mark.parametrize("clip", [1e-3, 0.1, 100.0])
def test_clips_the_gradient_of_each_image(clip: float) -> None:
    """Against one backward pass for each image; the sum is divided by the mean batch, 10."""
    module, rows = network(norm="group"), torch.arange(7)
    data = images(1).select(rows)
    gradients = []
    for image, label in zip(data.floats(), data.labels, strict=True):
        loss = nn.functional.cross_entropy(module(image[None]), label[None])
        gradients.append(flat(torch.autograd.grad(loss, list(module.parameters()))))
    norms = [float(g.norm()) for g in gradients]
    expected = sum(g * min(1.0, clip / n) / 10 for g, n in zip(gradients, norms, strict=True))
    moved = step(rows, noise=0.0, clip=clip)
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-6)
    if clip < min(norms):
        assert float(moved.norm()) <= clip * 7 / 10 * 1.001


def test_noise_has_the_stated_size_also_in_an_empty_step() -> None:
    moved = step(NOBODY, noise=3.0, clip=0.5)
    assert len(moved) > 900
    assert float(moved.std()) == pytest.approx(3.0 * 0.5 / 10, rel=0.1)
    assert abs(float(moved.mean())) < 0.02
    assert torch.equal(step(NOBODY, noise=3.0, clip=0.5), moved)
    assert not torch.equal(step(NOBODY, noise=3.0, clip=0.5, seed=1), moved)


def test_draws_images_independently() -> None:
    steps = PrivateSteps(noise=1.0, clip=1.0, images=10, on_step=lambda: None)
    drawn = [b for k in range(200) for b in steps.batches(100, 10, generator(0, k))]
    sizes = torch.tensor([float(len(b)) for b in drawn])
    assert len(drawn) == 2000
    # Binomial(100, 0.1): mean 10, variance 9.
    assert float(sizes.mean()) == pytest.approx(10.0, abs=0.3)
    assert float(sizes.var()) == pytest.approx(9.0, rel=0.15)
    counts = torch.cat(drawn).bincount(minlength=100).float()
    assert float(counts.min()) > 150 and float(counts.max()) < 250


def test_guarantee_is_kept_and_reported() -> None:
    facts = defend(DPSGD(epsilon=1.0), GIVEN).facts
    assert 0.9 < float(facts["epsilon"]) <= 1.0
    assert float(facts["delta"]) == pytest.approx(36**-1.1) and float(facts["delta"]) < 1 / 36
    assert facts["steps"] == 2 * math.ceil(36 / 8)
    delta, rate, steps = (facts[name] for name in ("delta", "sample_rate", "steps"))
    assert noise_multiplier(0.5, delta, rate, steps, "rdp") > facts["noise_multiplier"]
    assert noise_multiplier(1.0, delta, rate, steps, "prv") < facts["noise_multiplier"]
    whole = defend(DPSGD(epsilon=1.0, batch_size=1000), GIVEN).facts
    assert whole["sample_rate"] == 1.0 and whole["steps"] == 2
    # Without sampling the steps are one normal mechanism of sensitivity sqrt(steps): its RDP of
    # order a is a * steps / (2 noise^2) (Mironov 2017, cor. 3), converted by Canonne et al. 2020.
    noise, delta = float(whole["noise_multiplier"]), float(whole["delta"])
    bound = min(
        a * 2 / (2 * noise**2) + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1)
        for a in [1 + x / 10 for x in range(1, 100)] + list(range(12, 64))
    )
    assert float(whole["epsilon"]) == pytest.approx(bound, rel=1e-3)


def test_uses_no_statistic_of_private_images_and_ignores_protected() -> None:
    made = defend(DPSGD(epsilon=1.0), GIVEN)
    public = GIVEN.public.floats()
    assert made.target.mean[0] == pytest.approx(float(public.mean()))
    assert made.target.std[0] == pytest.approx(float(public.std()))
    kinds = {type(child) for child in made.target.module.modules()}
    assert nn.GroupNorm in kinds and not kinds & {nn.BatchNorm1d, nn.BatchNorm2d}
    assert made.facts["epochs"] == SHORT.epochs  # no early stopping
    assert same(made, defend(DPSGD(epsilon=1.0), training_data(training=SHORT, protected=5)))


def test_learns_with_little_noise_and_leaves_no_hooks() -> None:
    training = replace(QUICK, epochs=30, learning_rate=0.05)
    made = defend(DPSGD(epsilon=1e7, clip=10.0), training_data(training=training))
    assert accuracy(made) > 0.8
    assert not any(m._forward_hooks or m._backward_hooks for m in made.target.module.modules())
    assert not any(hasattr(p, "grad_sample") for p in made.target.module.parameters())


def spectral(old: bool) -> nn.Module:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))
    norm = torch.nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm
    norm(module[2])
    return module


@pytest.mark.parametrize("old", [True, False])
def test_spectral_normalisation_is_refused_before_a_step(old: bool) -> None:
    """opacus itself gives no gradients of single images for it."""
    module = spectral(old)
    with refused("2 (", "Linear) has spectral normalisation", "leave dp-sgd out"):
        DPSGD().check_network(module)
    steps = PrivateSteps(noise=0.0, clip=1.0, images=3, on_step=lambda: None)
    with refused("spectral normalisation"):
        steps.prepare(module, torch.optim.SGD(module.parameters(), lr=1.0), 0)
    assert not any(hasattr(p, "grad_sample") for p in module.parameters())


def test_batch_normalisation_is_replaced_and_named() -> None:
    plain = network()
    count = sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    assert DPSGD().check_network(plain) == (
        f"group normalisation in place of batch normalisation in {count} layers"
    )
    assert DPSGD().check_network(network(norm="group")) is None
    with refused("batch normalisation, which mixes", 'norm="group"'):
        PrivateSteps.check(plain)
    facts = defend(DPSGD(epsilon=1.0), GIVEN).facts
    assert facts["normalisation"] == "group normalisation in place of batch normalisation"


def test_rejects_large_delta_and_missing_public_images() -> None:
    with pytest.raises(InputError, match="delta below 1 / 36 images"):
        defend(DPSGD(delta=0.1))
    with pytest.raises(InputError, match="needs public images"):
        defend(DPSGD(), replace(GIVEN, public=GIVEN.public.select(NOBODY)))
