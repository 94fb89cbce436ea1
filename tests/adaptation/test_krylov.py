"""Block Lanczos against the dense matrices that it works on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inversight.adaptation.krylov import Krylov, Product
from tests.draws import normal

SHAPE = (1, 4, 5)
D = 20


def matrices(n: int) -> Tensor:
    """Symmetric positive semi-definite, (n, D, D) float64."""
    roots = normal(n, D, D)
    return roots @ roots.mT


def product_of(m: Tensor, calls: list[int] | None = None) -> Product:
    def product(v: Tensor) -> Tensor:
        if calls is not None:
            calls.append(1)
        return (m @ v.flatten(1)[..., None]).view_as(v)

    return product


def start(n: int, block: int, seed: int = 1) -> Tensor:
    return normal(n, block, *SHAPE, seed=seed)


def grown(m: Tensor, s: Tensor, steps: int, seed: int | None = None) -> Krylov:
    space = Krylov(product_of(m), s, steps=steps, seed=seed)
    for _ in range(steps):
        space.extend()
    return space


@pytest.mark.parametrize("block", [1, 2, 3])
def test_basis_spans_the_powers_and_residuals_are_exact(block: int) -> None:
    m, s = matrices(2), start(2, block)
    space = grown(m, s, 4)
    v = space.basis
    torch.testing.assert_close(v @ v.mT, torch.eye(4 * block).double().expand(2, -1, -1))
    power = s.flatten(2)
    for _ in range(4):
        torch.testing.assert_close(power @ v.mT @ v, power)
        power = power @ m
    ritz = space.ritz()
    assert bool((ritz.values.diff(dim=1) <= 0).all())
    torch.testing.assert_close(ritz.values, torch.linalg.eigvalsh(v @ m @ v.mT).flip(1))
    pairs = ritz.vectors.mT @ v
    missing = (pairs @ m - ritz.values[:, :, None] * pairs).norm(dim=2)
    torch.testing.assert_close(ritz.last.norm(dim=1), missing)


def test_images_are_independent() -> None:
    m, s = matrices(3), start(3, 2)
    together = grown(m, s, 4)
    for i in range(3):
        alone = grown(m[i : i + 1], s[i : i + 1], 4)
        torch.testing.assert_close(together.basis[i : i + 1], alone.basis)
        torch.testing.assert_close(together.ritz().values[i : i + 1], alone.ritz().values)


def test_exhausted_space_is_unchanged_without_a_seed() -> None:
    m, s = matrices(2), start(2, 1)
    m[0] = 3.0 * torch.eye(D)  # every vector is an eigenvector: one step
    calls: list[int] = []
    space = Krylov(product_of(m[:1], calls), s[:1], steps=5)
    space.extend()
    assert space.spent and len(calls) == 1
    both = grown(m, s, 5)
    assert both.ritz().values[0].tolist() == pytest.approx([3.0, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(both.ritz().values[1], grown(m[1:], s[1:], 5).ritz().values[0])


def test_starts_from_zeros() -> None:
    space = grown(matrices(1), torch.zeros(1, 1, *SHAPE, dtype=torch.float64), 3)
    assert space.spent and not bool(space.basis.any())
    assert bool(space.ritz().vectors.isfinite().all())


@settings(max_examples=25)
@given(
    block=st.integers(1, 4),
    values=st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 7.0]), min_size=D, max_size=D),
    seed=st.integers(0, 1000),
)
def test_finds_the_whole_spectrum_with_a_seed(block: int, values: list[float], seed: int) -> None:
    turn, _ = torch.linalg.qr(normal(D, D, seed=seed))
    expected = torch.tensor(values, dtype=torch.float64)
    m = (turn * expected @ turn.T)[None]
    space = grown(m, start(1, block, seed), -(-D // block), seed=seed)
    found = space.ritz().values[0, :D]
    torch.testing.assert_close(found, expected.sort(descending=True).values, rtol=0, atol=1e-8)
    # Beyond the full space there are vectors of zeros only.
    lengths = space.basis[0].norm(dim=1)
    assert int((lengths > 0.5).sum()) == D
