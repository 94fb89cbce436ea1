"""Clipping, noise and sampling of private steps, and nothing private beside them."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from inversight.core.errors import InputError
from inversight.core.seeding import generator
from inversight.defences import DPSGD
from inversight.defences.dp_sgd import PrivateSteps, mean_cross_entropy
from inversight.models.networks import Classifier
from inversight.models.training import Batch
from tests.defences.problem import (
    LONGER,
    SHORT,
    defend,
    equal,
    images,
    kinds,
    network,
    training_data,
)


@pytest.fixture
def opacus() -> None:
    pytest.importorskip("opacus", reason="opacus is not installed")


def step(module: Classifier, rows: torch.Tensor, noise: float, clip: float, seed: int = 0) -> int:
    """One private step of size 1; returns how often ``on_step`` was called."""
    calls: list[int] = []
    steps = PrivateSteps(noise=noise, clip=clip, images=10, on_step=lambda: calls.append(1))
    sgd = torch.optim.SGD(module.parameters(), lr=1.0)
    optimiser, release = steps.prepare(module, sgd, seed)
    data = images(1).select(rows)
    optimiser.zero_grad()
    loss = mean_cross_entropy(module, Batch(data.floats(), data.labels, 0.0, generator(0)))
    loss.backward()
    optimiser.step()
    release()
    return len(calls)


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("clip", [1e-3, 0.1, 100.0])
def test_each_images_gradient_is_clipped(opacus: None, clip: float) -> None:
    """Against one backward pass for each image; the sum is divided by the mean batch, 10."""
    module, rows = network(norm="group"), torch.arange(7)
    data, start = images(1).select(rows), flat(network(norm="group"))
    expected = torch.zeros_like(start)
    norms = []
    for image, label in zip(data.floats(), data.labels, strict=True):
        loss = nn.functional.cross_entropy(module(image[None]), label[None])
        parts = torch.autograd.grad(loss, list(module.parameters()))
        gradient = torch.cat([p.flatten() for p in parts])
        norms.append(float(gradient.norm()))
        expected += gradient * min(1.0, clip / norms[-1]) / 10
    assert step(module, rows, noise=0.0, clip=clip) == 1
    torch.testing.assert_close(start - flat(module), expected, rtol=1e-3, atol=1e-6)
    if clip < min(norms):
        assert float((start - flat(module)).norm()) <= clip * 7 / 10 * 1.001


def test_noise_has_the_stated_size_also_in_an_empty_step(opacus: None) -> None:
    nobody = torch.zeros(0, dtype=torch.int64)
    module, start = network(norm="group"), flat(network(norm="group"))
    assert step(module, nobody, noise=3.0, clip=0.5) == 1
    moved = start - flat(module)
    assert len(moved) > 900
    assert float(moved.std()) == pytest.approx(3.0 * 0.5 / 10, rel=0.1)
    assert abs(float(moved.mean())) < 0.02
    same, other = network(norm="group"), network(norm="group")
    step(same, nobody, noise=3.0, clip=0.5)
    step(other, nobody, noise=3.0, clip=0.5, seed=1)
    assert torch.equal(flat(same), flat(module)) and not torch.equal(flat(other), flat(module))


def test_images_are_drawn_independently() -> None:
    steps = PrivateSteps(noise=1.0, clip=1.0, images=10, on_step=lambda: None)
    drawn = [b for k in range(200) for b in steps.batches(100, 10, generator(0, k))]
    sizes = torch.tensor([float(len(b)) for b in drawn])
    assert len(drawn) == 2000
    # Binomial(100, 0.1): mean 10, variance 9.
    assert float(sizes.mean()) == pytest.approx(10.0, abs=0.3)
    assert float(sizes.var()) == pytest.approx(9.0, rel=0.15)
    counts = torch.cat(drawn).bincount(minlength=100).float()
    assert float(counts.min()) > 150 and float(counts.max()) < 250


def test_the_guarantee_is_kept_and_reported(opacus: None) -> None:
    given = training_data(training=SHORT)
    facts = defend(DPSGD(epsilon=4.0), given).facts
    assert 3.5 < float(facts["epsilon"]) <= 4.0
    assert float(facts["delta"]) == pytest.approx(36**-1.1) and float(facts["delta"]) < 1 / 36
    assert facts["steps"] == 2 * math.ceil(36 / 8)
    less = defend(DPSGD(epsilon=1.0), given).facts
    assert float(less["noise_multiplier"]) > float(facts["noise_multiplier"])
    whole = defend(DPSGD(epsilon=4.0, batch_size=1000), given).facts
    assert whole["sample_rate"] == 1.0 and whole["steps"] == 2
    # Without sampling the steps are one normal mechanism of sensitivity sqrt(steps): its RDP of
    # order a is a * steps / (2 noise^2) (Mironov 2017, cor. 3), converted by Canonne et al. 2020.
    noise, delta = float(whole["noise_multiplier"]), float(whole["delta"])
    bound = min(
        a * 2 / (2 * noise**2) + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1)
        for a in [1 + x / 10 for x in range(1, 100)] + list(range(12, 64))
    )
    assert float(whole["epsilon"]) == pytest.approx(bound, rel=1e-3)


def test_prv_needs_less_noise(opacus: None) -> None:
    given = training_data(training=replace(SHORT, epochs=1))
    noise = [
        float(defend(DPSGD(accountant=a), given).facts["noise_multiplier"])
        for a in ("rdp", "prv")  # type: ignore[arg-type]
    ]
    assert noise[1] < noise[0]


def test_no_statistic_of_private_images(opacus: None) -> None:
    given = training_data(training=SHORT)
    made = defend(DPSGD(), given)
    public = given.public.floats()
    assert made.target.mean[0] == pytest.approx(float(public.mean()))
    assert made.target.std[0] == pytest.approx(float(public.std()))
    assert not kinds(made.target.module) & {nn.BatchNorm1d, nn.BatchNorm2d}
    assert nn.GroupNorm in kinds(made.target.module)
    assert made.facts["epochs"] == SHORT.epochs  # no early stopping


def test_protected_images_are_treated_as_the_others(opacus: None) -> None:
    few, many = (training_data(training=SHORT, protected=n) for n in (1, 5))
    assert equal(defend(DPSGD(), few), defend(DPSGD(), many))


def test_little_noise_learns_and_leaves_nothing_on_the_network(opacus: None) -> None:
    given = training_data(training=replace(LONGER, learning_rate=0.03))
    target = defend(DPSGD(epsilon=1e7, clip=10.0), given).target
    fresh = images(6)
    assert float((target(fresh.floats()).argmax(1) == fresh.labels).float().mean()) > 0.8
    assert not any(m._forward_hooks or m._backward_hooks for m in target.module.modules())
    assert not any(hasattr(p, "grad_sample") for p in target.module.parameters())


def test_what_it_needs(opacus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="delta below 1 / 36 images"):
        defend(DPSGD(delta=0.1))
    given = training_data()
    nothing = given.public.select(torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match="needs public images"):
        defend(DPSGD(), replace(given, public=nothing))


def test_without_opacus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(InputError, match=r"pip install 'inversight\[dp\]'"):
        defend(DPSGD())
