"""Flows: invertible maps of noise, whose density follows from the change of variables."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from inversight.attacks import run_attack
from inversight.attacks.vmi import Flow, Gaussian, _couplings
from inversight.core.errors import InputError
from inversight.core.seeding import generator
from tests.attacks.table import CASES
from tests.attacks.table import FLOW as FLOW_ATTACK
from tests.attacks.toy import LABELS, Answering, FlatPrior, NearestByLayer, levels, toy_target

FLOW = Flow(couplings=3, hidden=8)
needs_zuko = pytest.mark.skipif(find_spec("zuko") is None, reason="zuko is not installed")


def bent(width: int, classes: int = 2, seed: int = 0) -> list[Tensor]:
    """Variables of flows that do change something, and something else for each class."""
    rng = generator(seed)
    return [v + 0.3 * torch.randn(v.shape, generator=rng) for v in FLOW.start(classes, width)]


@needs_zuko
def test_starts_as_the_identity() -> None:
    noise = torch.randn(2, 5, 4, generator=generator(1))
    start = FLOW.start(2, 4)
    torch.testing.assert_close(FLOW.points(start, noise), noise)
    torch.testing.assert_close(FLOW.divergence(start, noise), torch.zeros(2))
    assert all(torch.equal(one[0], one[1]) for one in start)
    assert any(bool(one.abs().max() > 0) for one in start)  # or hidden layers would never learn


@needs_zuko
def test_log_volume_is_the_jacobians_log_determinant() -> None:
    variables, noise = bent(4), torch.randn(2, 3, 4, generator=generator(1))
    _, log_volume = FLOW._moved(variables, noise)
    for k in range(2):
        for s in range(3):

            def point(z: Tensor, k: int = k, s: int = s) -> Tensor:
                there = noise.clone()
                there[k, s] = z
                return FLOW.points(variables, there)[k, s]

            jacobian = torch.autograd.functional.jacobian(point, noise[k, s])
            torch.testing.assert_close(log_volume[k, s], torch.linalg.slogdet(jacobian)[1])


@needs_zuko
def test_classes_have_independent_flows() -> None:
    variables, noise = bent(4, classes=3), torch.randn(3, 5, 4, generator=generator(1))
    among = FLOW.points(variables, noise)
    alone = FLOW.points([v[1:2] for v in variables], noise[1:2])
    torch.testing.assert_close(alone[0], among[1])
    assert not torch.allclose(FLOW.points(variables, noise[:1].expand(3, -1, -1))[0], among[1])


@needs_zuko
def test_the_divergence_of_a_gaussian_flow() -> None:
    """Couplings whose networks are constant shift and scale: N(m, diag(s^2)) in closed form."""
    flow = Flow(couplings=2, hidden=4)
    module = _couplings(2, 4, 1, 2)
    variables = flow.start(1, 2)
    for (name, _), value in zip(module.named_parameters(), variables, strict=True):
        if name.endswith("hyper.4.bias"):
            value.copy_(torch.tensor([[0.7, -0.5]]))  # shift, and the logarithm of scale squashed
    noise = torch.randn(1, 20000, 2, generator=generator(0))
    points = flow.points(variables, noise)[0]
    mean, deviation = points.mean(0), points.std(0)
    assert float(mean.abs().min()) > 0.1 and float((deviation - 1).abs().min()) > 0.1
    packed = torch.diag(deviation.log())[None]
    expected = Gaussian().divergence([mean[None], packed], noise)
    torch.testing.assert_close(flow.divergence(variables, noise), expected, atol=0.02, rtol=0.02)


@needs_zuko
def test_the_global_random_state_is_not_changed() -> None:
    module, before = NearestByLayer(), torch.get_rng_state()
    CASES["vmi-flow"].run(module=module)
    assert torch.equal(before, torch.get_rng_state())


@needs_zuko
def test_a_flow_fits_a_curve_better_than_a_gaussian() -> None:
    """-log p is least along the parabola z_1 = z_0^2 - 1: samples are nearer to it, and as wide."""

    def answer(x: Tensor) -> Tensor:
        loss = 2.0 * off(torch.logit(levels(x).clamp(1e-6, 1 - 1e-6))).square() + 0.01
        return torch.stack([-loss, torch.log(-torch.expm1(-loss))], dim=1)

    def off(z: Tensor) -> Tensor:
        return z[:, 1] - z[:, 0].square() + 1.0

    target = toy_target(Answering(answer))
    how = replace(
        FLOW_ATTACK, divergence_weight=1.0, samples=64, steps=200, candidates=500, keep=500, crops=1,
        hidden=16, learning_rate=0.01,
    )  # fmt: skip
    flow, gaussian = (
        one.run(target, FlatPrior(), torch.tensor([0]), rng=generator(0)).latents
        for one in (how, replace(how, family="gaussian"))
    )
    assert float(off(flow).square().mean()) < 0.75 * float(off(gaussian).square().mean())
    assert float(flow[:, 0].std()) > 1.25 * float(gaussian[:, 0].std())


@needs_zuko
def test_one_coordinate_is_refused() -> None:
    with pytest.raises(InputError, match="2 coordinates or more"):
        FLOW.start(1, 1)


def test_without_zuko_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zuko", None)
    _couplings.cache_clear()
    module = NearestByLayer()
    with pytest.raises(InputError) as caught:
        run_attack(FLOW_ATTACK, toy_target(module), FlatPrior(), LABELS, rng=generator(0))
    assert "pip install 'inversight[flows]'" in str(caught.value) and "\n" not in str(caught.value)
    assert module.images == 0
