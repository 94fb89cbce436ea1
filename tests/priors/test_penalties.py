"""R1 and path lengths on maps whose derivatives are known; Adam's correction."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from inversight.core.checkpoints import load_state, save_state
from inversight.priors.penalties import PathLength, lazy_adam, r1_penalty
from tests.draws import normal, rng


def test_r1_of_a_quadratic() -> None:
    # D(x) = sum of a x^2 / 2 has gradient a x, so the penalty is the mean of sum (a x)^2.
    a, x = torch.rand(1, 8, 8), torch.randn(3, 1, 8, 8).requires_grad_(True)
    logits = (a * x.square() / 2).sum((1, 2, 3))
    expected = (a * x).square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(r1_penalty(logits, x), expected)


def linear_images(scale: Tensor, ws: Tensor) -> Tensor:
    """Images (N, 1, 4, 4), linear in ws (N, L, D) with the Jacobian ``scale`` (16, L, D)."""
    return torch.einsum("pld,nld->np", scale, ws).view(-1, 1, 4, 4)


def noise_as_drawn(n: int, seed: int) -> Tensor:
    """y ~ N(0, 1) / sqrt(H W), as the penalty draws it in float32."""
    return torch.randn(n, 1, 4, 4, generator=rng(seed)).double().view(n, 16) / 4.0


def test_path_lengths_of_a_linear_generator() -> None:
    jacobian, ws = normal(16, 3, 5, seed=1), normal(6, 3, 5, seed=2).requires_grad_(True)
    path = PathLength()
    path.mean = 0.7
    penalty, mean = path.penalty(linear_images(jacobian, ws), ws, rng(3))
    product = torch.einsum("np,pld->nld", noise_as_drawn(6, 3), jacobian)
    lengths = product.square().sum(2).mean(1).sqrt()  # (sum over D, mean over L)
    expected = 0.99 * 0.7 + 0.01 * float(lengths.mean())
    assert mean == pytest.approx(expected)
    assert float(penalty.detach()) == pytest.approx(float((lengths - expected).square().mean()))
    assert path.mean == 0.7  # kept by the caller, once all shares are seen


def test_path_lengths_of_an_orthogonal_generator_have_the_known_mean() -> None:
    """E |J^T y|^2 = |J|_F^2 / (H W): with orthonormal columns, D / 16 for each latent."""
    columns, _ = torch.linalg.qr(normal(16, 8, seed=1))
    jacobian = columns.view(16, 1, 8)
    ws = normal(4000, 1, 8, seed=2).requires_grad_(True)
    path = PathLength(decay=1.0)
    _, mean = path.penalty(linear_images(jacobian, ws), ws, rng(3))
    # A chi variable with 8 degrees of freedom, divided by 4.
    chi = math.sqrt(2.0) * math.gamma(4.5) / math.gamma(4.0) / 4.0
    assert mean == pytest.approx(chi, rel=0.01)


def test_the_penalty_makes_lengths_equal() -> None:
    """images = exp(s) w: the length is exp(s) |y|, and descending s brings it to the target."""
    log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    path = PathLength(decay=0.0)
    path.mean = 3.0
    optimiser = torch.optim.Adam([log_scale], lr=0.05)
    for i in range(200):
        ws = normal(64, 1, 16, seed=i).requires_grad_(True)
        penalty, _ = path.penalty((log_scale.exp() * ws).view(64, 1, 4, 4), ws, rng(i))
        optimiser.zero_grad()
        penalty.backward()
        optimiser.step()
    # The scale c that minimises E (c t - 3)^2, t = |y|: c = 3 E t / E t^2, E t^2 = 1.
    mean_length = math.sqrt(2.0) * math.gamma(8.5) / math.gamma(8.0) / 4.0
    assert float(log_scale.exp().detach()) == pytest.approx(3.0 * mean_length, rel=0.05)


@pytest.mark.parametrize(("interval", "share"), [(16, 16 / 17), (4, 4 / 5), (None, 1.0)])
def test_adam_is_corrected_for_lazy_penalties(interval: int | None, share: float) -> None:
    (group,) = lazy_adam([nn.Parameter(torch.zeros(1))], 2e-3, interval).param_groups
    assert group["lr"] == pytest.approx(2e-3 * share)
    assert group["betas"] == pytest.approx((0.0, 0.99**share))
    # Over an interval, k + 1 corrected updates forget as much as k of the usual ones.
    if interval is not None:
        assert group["betas"][1] ** (interval + 1) == pytest.approx(0.99**interval)


def test_adam_equals_the_plain_one_in_any_layout_and_after_loading(tmp_path: Path) -> None:
    """The fused update walks over memory: parameter, gradient and state must lie alike."""

    def network() -> nn.Conv2d:
        layer = nn.Conv2d(4, 3, 3)
        layer.weight.data, layer.bias.data = normal(3, 4, 3, 3, seed=9).float(), torch.zeros(3)
        return layer.to(memory_format=torch.channels_last)

    def train(layer: nn.Conv2d, optimiser: torch.optim.Optimizer, steps: range) -> None:
        for i in steps:
            optimiser.zero_grad()
            layer(normal(3, 4, 5, 5, seed=i).float()).square().mean().backward()
            optimiser.step()

    plain, fused, resumed = network(), network(), network()
    train(plain, torch.optim.Adam(plain.parameters(), 0.05, (0.0, 0.99), fused=False), range(6))
    first, second = (lazy_adam(layer.parameters(), 0.05, None) for layer in (fused, resumed))
    train(fused, first, range(3))
    file = tmp_path / "state.safetensors"
    save_state(file, "test", {}, modules={"layer": fused}, optimisers={"adam": first})
    load_state(file, "test", modules={"layer": resumed}, optimisers={"adam": second})
    train(fused, first, range(3, 6))
    train(resumed, second, range(3, 6))
    torch.testing.assert_close(dict(fused.named_parameters()), dict(plain.named_parameters()))
    torch.testing.assert_close(dict(resumed.named_parameters()), dict(plain.named_parameters()))
