"""The damped inverse against dense linear algebra on embeddings whose metric is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inversight.adaptation.preconditioners import Damped
from inversight.embeddings.pullback import PullbackMetric
from tests.adaptation.metrics import SHAPE, Curved, D, Linear, draw, linear, with_eigenvalues
from tests.reference.conjugate_gradients import conjugate_gradients

EYE = torch.eye(D, dtype=torch.float64)


def largest_seen(m: Tensor, g: Tensor, products: int) -> float:
    """Largest eigenvalue of M projected on the span of g, M g, M^2 g, ... (so many vectors)."""
    powers = [g]
    for _ in range(products - 1):
        powers.append(m @ powers[-1] / powers[-1].norm())
    basis, _ = torch.linalg.qr(torch.stack(powers, 1))
    return float(torch.linalg.eigvalsh(basis.T @ m @ basis)[-1])


def test_run_to_convergence_it_equals_the_dense_solve() -> None:
    phi, g = linear(), draw(3, 2)
    damped = Damped(phi, damping=0.1, iterations=D)
    eps = 0.1 * torch.linalg.eigvalsh(phi.metric)[-1]
    expected = torch.linalg.solve(phi.metric + eps * EYE, g.flatten(1).T).T.view_as(g)
    torch.testing.assert_close(damped(draw(3, 1), g), expected)
    assert damped.logged["residual"] < 1e-9


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_before_that_it_is_the_iterate_of_conjugate_gradients(iterations: int) -> None:
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


def test_the_energy_it_reports_is_that_of_directions_above_the_damping() -> None:
    phi, g = linear(), draw(3, 2)
    damped = Damped(phi, damping=0.1, iterations=D)
    damped(draw(3, 1), g)
    values, vectors = torch.linalg.eigh(phi.metric)
    parts = (g.flatten(1) @ vectors).square()
    shares = parts[:, values >= 0.1 * values[-1]].sum(1) / parts.sum(1)
    assert damped.logged["energy"] == pytest.approx(float(shares.mean()))


def test_what_the_metric_does_not_see_is_kept_and_what_it_sees_is_shortened() -> None:
    phi = Linear(torch.diag(torch.tensor([1.0] * 4 + [0.0] * 8, dtype=torch.float64)))
    p = Damped(phi, damping=0.1)(draw(1, 1), torch.ones(1, *SHAPE, dtype=torch.float64)).flatten()
    # M = 2 on the first four values: 1 / (2 + 0.2) there, 1 / 0.2 elsewhere.
    expected = torch.tensor([1 / 2.2] * 4 + [1 / 0.2] * 8, dtype=torch.float64)
    torch.testing.assert_close(p, expected)


def test_a_batch_is_its_images_one_by_one() -> None:
    x, g = draw(4, 1), draw(4, 2)
    damped = Damped(linear(kind=Curved))
    together = damped(x, g)
    alone = torch.cat([damped(x[i : i + 1], g[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)


def test_what_has_converged_takes_no_more_products(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_vanished_metric_and_a_zero_gradient_do_no_harm() -> None:
    g = draw(2, 2)
    blind = Damped(Linear(torch.zeros(2, D, dtype=torch.float64)))
    torch.testing.assert_close(blind(draw(2, 1), g) / g, torch.full_like(g, 1e12))
    g[0] = 0.0
    damped = Damped(linear(), iterations=4)
    found = damped(draw(2, 1), g)
    assert torch.equal(found[0], torch.zeros_like(found[0]))
    torch.testing.assert_close(found[1:], damped(draw(2, 1)[1:], g[1:]))
    both = dict(damped.logged)
    damped(draw(2, 1), g)
    assert damped.logged == pytest.approx(both)  # the image without a gradient does not count
    damped(draw(2, 1), torch.zeros_like(g))
    assert damped.logged == {"residual": 0.0, "energy": 0.0}


def test_the_result_is_a_descent_direction() -> None:
    g = draw(5, 2)
    found = Damped(linear(), iterations=2)(draw(5, 1), g)
    assert bool(((found * g).flatten(1).sum(1) > 0).all())


def test_scale_of_the_metric_and_of_the_gradient_set_the_length_alone() -> None:
    phi, x, g = linear(), draw(2, 1), draw(2, 2)
    found = Damped(phi)(x, g)
    scaled = Damped(Linear(10.0 * phi.a))(x, 3.0 * g)
    torch.testing.assert_close(scaled, found * 3.0 / 100.0)
