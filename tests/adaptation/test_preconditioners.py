"""The damped inverse against dense linear algebra on embeddings whose metric is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from inversight.adaptation import Damped, PaperEigen
from inversight.embeddings.pullback import PullbackMetric
from tests.adaptation.metrics import BLIND, SHAPE, Curved, D, Linear, draw, linear, with_eigenvalues
from tests.reference.conjugate_gradients import conjugate_gradients

EYE = torch.eye(D, dtype=torch.float64)


def largest_seen(m: Tensor, g: Tensor, products: int) -> float:
    """Largest eigenvalue of M projected on the span of g, M g, M^2 g, ... (so many vectors)."""
    powers = [g]
    for _ in range(products - 1):
        powers.append(m @ powers[-1] / powers[-1].norm())
    basis, _ = torch.linalg.qr(torch.stack(powers, 1))
    return float(torch.linalg.eigvalsh(basis.T @ m @ basis)[-1])


def test_converged_it_equals_the_dense_solve() -> None:
    phi, g = linear(), draw(3, 2)
    damped = Damped(phi, damping=0.1, iterations=D)
    values, vectors = torch.linalg.eigh(phi.metric)
    system = phi.metric + 0.1 * values[-1] * EYE
    expected = torch.linalg.solve(system, g.flatten(1).T).T.view_as(g)
    torch.testing.assert_close(damped(draw(3, 1), g), expected)
    assert damped.logged["residual"] < 1e-9
    parts = (g.flatten(1) @ vectors).square()
    shares = parts[:, values >= 0.1 * values[-1]].sum(1) / parts.sum(1)
    assert damped.logged["energy"] == pytest.approx(float(shares.mean()))


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_before_convergence_it_equals_conjugate_gradients(iterations: int) -> None:
    phi, g = linear(), draw(3, 2)
    damped = Damped(phi, damping=0.2, iterations=iterations)
    found = damped(draw(3, 1), g)
    residuals = []
    for ours, b in zip(found.flatten(1), g.flatten(1), strict=True):
        eps = 0.2 * largest_seen(phi.metric, b, iterations)
        system = phi.metric + eps * EYE
        torch.testing.assert_close(ours, conjugate_gradients(system, b, iterations))
        residuals.append(float((system @ ours - b).norm() / b.norm()))
    assert damped.logged["residual"] == pytest.approx(sum(residuals) / 3)


def test_keeps_directions_of_eigenvalue_0() -> None:
    phi = Linear(torch.diag(torch.tensor([1.0] * 4 + [0.0] * 8, dtype=torch.float64)))
    p = Damped(phi, damping=0.1)(draw(1, 1), torch.ones(1, *SHAPE, dtype=torch.float64)).flatten()
    # M = 2 on the first four values: 1 / (2 + 0.2) there, 1 / 0.2 elsewhere.
    expected = torch.tensor([1 / 2.2] * 4 + [1 / 0.2] * 8, dtype=torch.float64)
    torch.testing.assert_close(p, expected)


@pytest.mark.parametrize("kind", [Damped, partial(PaperEigen, rank=3, tolerance=1e-10)])
def test_images_are_independent_and_zero_gradients_are_not_counted(
    kind: Callable[..., Any],
) -> None:
    x, g = draw(4, 1), draw(4, 2)
    g[0] = 0.0
    precondition = kind(linear(kind=Curved))
    together = precondition(x, g)
    assert not together[0].any()
    logged = dict(precondition.logged)
    torch.testing.assert_close(precondition(x[1:], g[1:]), together[1:])
    assert precondition.logged == pytest.approx(logged)
    alone = torch.cat([precondition(x[i : i + 1], g[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)


def test_convergence_ends_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    product = PullbackMetric.product

    def counted(self: PullbackMetric, v: Tensor) -> Tensor:
        calls.append(1)
        return product(self, v)

    monkeypatch.setattr(PullbackMetric, "product", counted)
    g = draw(3, 2)
    found = Damped(with_eigenvalues([2.0] * 6 + [0.5] * 6), iterations=10)(draw(3, 1), g)
    assert len(calls) == 2  # as many as there are different eigenvalues
    assert bool(found.isfinite().all())


def test_metric_0_and_zero_gradients_are_finite() -> None:
    g, damped = draw(2, 2), Damped(linear(), iterations=4)
    torch.testing.assert_close(Damped(BLIND)(draw(2, 1), g) / g, torch.full_like(g, 1e12))
    assert not damped(draw(2, 1), torch.zeros_like(g)).any()
    assert damped.logged == {"residual": 0.0, "energy": 0.0}


def test_result_is_a_descent_direction() -> None:
    g = draw(5, 2)
    found = Damped(linear(), iterations=2)(draw(5, 1), g)
    assert bool(((found * g).flatten(1).sum(1) > 0).all())


def test_scales_of_metric_and_gradient_change_only_the_length() -> None:
    phi, x, g = linear(), draw(2, 1), draw(2, 2)
    found = Damped(phi)(x, g)
    scaled = Damped(Linear(10.0 * phi.a))(x, 3.0 * g)
    torch.testing.assert_close(scaled, found * 3.0 / 100.0)
