"""Preconditioners against dense linear algebra on embeddings whose metric is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inversight.adaptation.preconditioners import Damped, Identity, conjugate_gradients

SHAPE = (1, 3, 3)
N = 9


@dataclass(frozen=True)
class Linear:
    """phi(x) = A x, so M = 2 A^T A everywhere."""

    a: Tensor
    name: str = "linear"

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return (images.flatten(1) @ self.a.T,)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(n: int, seed: int) -> Tensor:
    return torch.randn(n, *SHAPE, generator=rng(seed), dtype=torch.float64)


def linear() -> Linear:
    return Linear(torch.randn(6, N, generator=rng(0), dtype=torch.float64))


def test_identity() -> None:
    g = draw(2, 1)
    assert Identity()(draw(2, 2), g) is g


def test_conjugate_gradients_solve_a_batch_of_systems() -> None:
    roots = torch.randn(4, N, N, generator=rng(1), dtype=torch.float64)
    systems = roots @ roots.mT + 0.5 * torch.eye(N, dtype=torch.float64)
    b = draw(4, 2)

    def operator(v: Tensor) -> Tensor:
        return (systems @ v.flatten(1)[..., None]).view_as(v)

    x = conjugate_gradients(operator, b, iterations=40)
    expected = torch.linalg.solve(systems, b.flatten(1)[..., None]).view_as(b)
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-8)


def test_conjugate_gradients_of_nothing_is_nothing() -> None:
    b = draw(2, 3)
    b[0] = 0.0
    x = conjugate_gradients(lambda v: 2.0 * v, b, iterations=5)
    assert torch.equal(x[0], torch.zeros_like(x[0]))
    torch.testing.assert_close(x[1], b[1] / 2.0)


def test_conjugate_gradients_stand_still_once_converged() -> None:
    calls = []

    def operator(v: Tensor) -> Tensor:
        calls.append(1)
        return 3.0 * v

    conjugate_gradients(operator, draw(3, 4), iterations=50)
    assert len(calls) <= 2  # a multiple of the identity is solved in one step


def test_damped_equals_the_dense_solve() -> None:
    phi, x, g = linear(), draw(3, 1), draw(3, 2)
    metric = 2.0 * phi.a.T @ phi.a
    # Enough iterations that neither the eigenvalue nor the solution is approximate.
    found = Damped(phi, damping=0.1, iterations=50, power_iterations=500)(x, g)
    eps = 0.1 * torch.linalg.eigvalsh(metric)[-1]
    expected = torch.linalg.solve(metric + eps * torch.eye(N), g.flatten(1).T).T.view_as(g)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_what_the_metric_does_not_see_is_kept_and_what_it_sees_is_shortened() -> None:
    phi = Linear(torch.diag(torch.tensor([1.0] * 4 + [0.0] * 5, dtype=torch.float64)))
    g = torch.ones(1, *SHAPE, dtype=torch.float64)
    p = Damped(phi, damping=0.1, iterations=20, power_iterations=20)(draw(1, 1), g).flatten()
    # M = 2 on the first four values: 1 / (2 + 0.2) there, 1 / 0.2 elsewhere.
    expected = torch.tensor([1 / 2.2] * 4 + [1 / 0.2] * 5, dtype=torch.float64)
    torch.testing.assert_close(p, expected, rtol=1e-6, atol=0)


def test_a_batch_is_its_images_one_by_one() -> None:
    class Curved(Linear):
        def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
            return (torch.tanh(images.flatten(1) @ self.a.T),)

    phi = Curved(linear().a)
    x, g = draw(4, 1), draw(4, 2)
    damped = Damped(phi)
    together = damped(x, g)
    alone = torch.cat([damped(x[i : i + 1], g[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)


def test_a_vanished_metric_does_no_harm() -> None:
    phi = Linear(torch.zeros(2, N, dtype=torch.float64))
    found = Damped(phi)(draw(2, 1), draw(2, 2))
    assert bool(found.isfinite().all())
    nothing = Damped(linear())(draw(1, 1), torch.zeros(1, *SHAPE, dtype=torch.float64))
    assert torch.equal(nothing, torch.zeros_like(nothing))


def test_the_result_is_a_descent_direction() -> None:
    g = draw(5, 2)
    found = Damped(linear(), iterations=2)(draw(5, 1), g)
    assert bool(((found * g).flatten(1).sum(1) > 0).all())
