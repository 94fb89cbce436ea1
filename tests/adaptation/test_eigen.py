"""The inverse of the top eigenspace against dense eigendecompositions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inversight.adaptation.eigen import Eigenspace, PaperEigen, top_eigenspace
from inversight.adaptation.krylov import Krylov
from inversight.embeddings.lpips import Lpips, random_backbone
from inversight.embeddings.pullback import PullbackMetric
from tests.adaptation.metrics import BLIND, Curved, D, Linear, draw, linear, with_eigenvalues
from tests.draws import rng


def dense(metric: Tensor, g: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """V diag(1 / lambda) V^T g of one image and |V^T g|^2 / |g|^2, eigenvalues of 0 left out."""
    values, vectors = torch.linalg.eigh(metric)
    top = values.argsort(descending=True)[:rank]
    top = top[values[top] > 1e-9 * values.max()]
    v, flat = vectors[:, top], g.flatten()
    parts = v.T @ flat
    return (v @ (parts / values[top])).view_as(g), parts.square().sum() / flat.square().sum()


def eigenspace(
    phi: Linear, x: Tensor, *, rank: int, tolerance: float = 0.0, products: int = D, block: int = 1
) -> Eigenspace:
    product = PullbackMetric(phi, x).product
    return top_eigenspace(
        product, x, rank=rank, tolerance=tolerance, products=products, block=block
    )


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_equals_the_dense_closed_form(rank: int) -> None:
    phi, g = linear(), draw(3, 2)
    eigen = PaperEigen(phi, rank=rank, tolerance=1e-10)
    found = eigen(draw(3, 1), g)
    steps, energies = zip(*(dense(phi.metric, one, rank) for one in g), strict=True)
    torch.testing.assert_close(found, torch.stack(steps))
    assert eigen.logged["energy"] == pytest.approx(float(torch.stack(energies).mean()))
    assert eigen.logged["residual"] < 1e-9


def test_eigenpairs_are_those_of_each_image() -> None:
    phi, x = linear(kind=Curved), 0.3 * draw(3, 1)
    found = eigenspace(phi, x, rank=4, tolerance=1e-10, products=50)
    for i, image in enumerate(x):
        slopes = 1 - torch.tanh(phi.a @ image.flatten()).square()
        j = slopes[:, None] * phi.a
        values, vectors = torch.linalg.eigh(2 * j.T @ j)
        torch.testing.assert_close(found.values[i], values.flip(0)[:4])
        overlap = (found.vectors[i] * vectors.flip(1)[:, :4].T).sum(1).abs()
        torch.testing.assert_close(overlap, torch.ones_like(overlap))


def test_residuals_before_convergence_are_those_of_the_metric() -> None:
    phi = linear(rows=D)
    found = eigenspace(phi, draw(2, 1), rank=3, products=6, block=2)
    assert found.products == 6
    missing = found.vectors @ phi.metric - found.values[:, :, None] * found.vectors
    torch.testing.assert_close(found.residuals, missing.norm(dim=2) / found.values)
    assert float(found.residuals.max()) > 1e-3


def test_stops_at_the_tolerance() -> None:
    steep = with_eigenvalues([10.0**-i for i in range(D)])
    loose = eigenspace(steep, draw(2, 1), rank=1, tolerance=0.1, products=100)
    assert loose.products < D and float(loose.residuals.max()) <= 0.1


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize(
    "values",
    [
        [5.0, 5.0, 3.0, 3.0, 2.0, 2.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5],
        [4.0] * 6 + [1.0] * 6,
        [2.0] * 3 + [1.0] * 3 + [0.0] * 6,
    ],
)
def test_finds_all_repeated_eigenvalues(values: list[float], block: int) -> None:
    phi, g = with_eigenvalues(values), draw(2, 2)
    found = eigenspace(phi, draw(2, 1), rank=6, block=block)
    expected = torch.tensor(values[:6], dtype=torch.float64).expand(2, -1)
    torch.testing.assert_close(found.values, expected)
    natural = found.inverse(found.coordinates(g)).view_as(g)
    torch.testing.assert_close(natural, torch.stack([dense(phi.metric, one, 6)[0] for one in g]))


@pytest.mark.parametrize(("rank", "single"), [(3, False), (8, False), (20, False), (8, True)])
def test_rank_above_that_of_the_metric_gives_the_pseudo_inverse(rank: int, single: bool) -> None:
    """In single precision, rounding errors do not pass for eigenvalues."""
    phi, g = linear(rows=3), draw(2, 2)
    dtype, near = (torch.float32, {"rtol": 1e-3, "atol": 1e-5}) if single else (torch.float64, {})
    eigen = PaperEigen(Linear(phi.a.to(dtype)), rank=rank)
    expected = (torch.linalg.pinv(phi.metric) @ g.flatten(1).T).T.view_as(g)
    found = eigen(draw(2, 1).to(dtype), g.to(dtype))
    torch.testing.assert_close(found, expected, check_dtype=False, **near)
    assert 0 < eigen.logged["energy"] < 1


def test_metric_0_gives_0() -> None:
    eigen = PaperEigen(BLIND, rank=3)
    assert not eigen(draw(2, 1), draw(2, 2)).any()
    assert eigen.logged == {"residual": 0.0, "energy": 0.0}


def test_flat_images_under_lpips() -> None:
    """All positions alike, so that eigenvalues come in near groups; black, grey and white."""
    lpips = Lpips("alex", size=64, backbone=random_backbone("alex", rng(0)), smooth=True)
    x = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 16, 16)
    g = torch.randn(x.shape, generator=rng(1))
    eigen = PaperEigen(lpips, rank=5)
    found = eigen(x, g)
    assert bool(found.isfinite().all())
    assert eigen.logged["residual"] <= eigen.tolerance
    product = PullbackMetric(lpips, x).product
    # M maps the result back to the part of the gradient that is kept.
    kept = product(found)
    share = kept.square().flatten(1).sum(1) / g.square().flatten(1).sum(1)
    assert float(share.mean()) == pytest.approx(eigen.logged["energy"], rel=0.05)


def diagonal(values: Tensor, rank: int, tolerance: float, products: int) -> Eigenspace:
    """The top of the spectrum of a diagonal M, for two images of 400 values."""
    x = torch.zeros(2, 1, 20, 20, dtype=torch.float64)
    return top_eigenspace(
        lambda v: values.view_as(v[:1]) * v, x, rank=rank, tolerance=tolerance, products=products
    )


def test_finds_the_top_of_a_large_spectrum_without_exhausting_the_space() -> None:
    values = torch.linspace(1.0, 10.0, 400, dtype=torch.float64)
    found = diagonal(values, 5, 1e-6, 300)
    assert found.products < 300
    torch.testing.assert_close(found.values, values.flip(0)[:5].expand(2, -1))
    assert found.vectors.shape == (2, 5, 400)


def test_few_checks_of_the_residuals_cost_few_extra_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = torch.logspace(1.0, -2.0, 400, dtype=torch.float64)
    least = next(k for k in range(5, 400) if diagonal(values, 5, 0.0, k).residuals.max() <= 1e-6)
    checks: list[int] = []
    ritz = Krylov.ritz
    monkeypatch.setattr(Krylov, "ritz", lambda space: (checks.append(1), ritz(space))[1])
    assert least <= diagonal(values, 5, 1e-6, 400).products <= 1.125 * least + 4
    assert len(checks) <= least / 4
