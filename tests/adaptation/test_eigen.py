"""The inverse of the top eigenspace against dense eigendecompositions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inversight.adaptation.eigen import Eigenspace, PaperEigen, top_eigenspace
from inversight.adaptation.krylov import Krylov
from inversight.embeddings.lpips import Lpips, random_backbone
from inversight.embeddings.pullback import PullbackMetric
from tests.adaptation.metrics import Curved, D, Linear, draw, linear, rng, with_eigenvalues


def dense(metric: Tensor, g: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """V diag(1 / lambda) V^T g of one image and |V^T g|^2 / |g|^2, eigenvalues of 0 left out."""
    values, vectors = torch.linalg.eigh(metric)
    top = values.argsort(descending=True)[:rank]
    top = top[values[top] > 1e-9 * values.max()]
    v, flat = vectors[:, top], g.flatten()
    parts = v.T @ flat
    return (v @ (parts / values[top])).view_as(g), parts.square().sum() / flat.square().sum()


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_it_equals_the_dense_closed_form(rank: int) -> None:
    phi, g = linear(), draw(3, 2)
    eigen = PaperEigen(phi, rank=rank, tolerance=1e-10)
    found = eigen(draw(3, 1), g)
    expected = [dense(phi.metric, one, rank) for one in g]
    torch.testing.assert_close(found, torch.stack([p for p, _ in expected]))
    energy = float(torch.stack([share for _, share in expected]).mean())
    assert eigen.logged["energy"] == pytest.approx(energy)
    assert eigen.logged["residual"] < 1e-9


def test_eigenpairs_are_those_of_each_image() -> None:
    phi, x = linear(kind=Curved), 0.3 * draw(3, 1)
    found = top_eigenspace(PullbackMetric(phi, x).product, x, rank=4, tolerance=1e-10, products=50)
    for i, image in enumerate(x):
        slopes = 1 - torch.tanh(phi.a @ image.flatten()).square()
        j = slopes[:, None] * phi.a
        values, vectors = torch.linalg.eigh(2 * j.T @ j)
        torch.testing.assert_close(found.values[i], values.flip(0)[:4])
        overlap = (found.vectors[i] * vectors.flip(1)[:, :4].T).sum(1).abs()
        torch.testing.assert_close(overlap, torch.ones_like(overlap))


def test_residuals_before_convergence_are_those_of_the_metric() -> None:
    phi, x = linear(rows=D), draw(2, 1)
    found = top_eigenspace(
        PullbackMetric(phi, x).product, x, rank=3, tolerance=0.0, products=6, block=2
    )
    assert found.products == 6
    missing = found.vectors @ phi.metric - found.values[:, :, None] * found.vectors
    torch.testing.assert_close(found.residuals, missing.norm(dim=2) / found.values)
    assert float(found.residuals.max()) > 1e-3


def test_it_stops_at_the_tolerance() -> None:
    steep = with_eigenvalues([10.0**-i for i in range(D)])
    x = draw(2, 1)
    product = PullbackMetric(steep, x).product
    loose = top_eigenspace(product, x, rank=1, tolerance=0.1, products=100, block=1)
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
def test_repeated_eigenvalues_are_all_found(values: list[float], block: int) -> None:
    phi, x, g = with_eigenvalues(values), draw(2, 1), draw(2, 2)
    found = top_eigenspace(
        PullbackMetric(phi, x).product, x, rank=6, tolerance=0.0, products=D, block=block
    )
    expected = torch.tensor(values[:6], dtype=torch.float64).expand(2, -1)
    torch.testing.assert_close(found.values, expected)
    natural = found.inverse(found.coordinates(g)).view_as(g)
    torch.testing.assert_close(natural, torch.stack([dense(phi.metric, one, 6)[0] for one in g]))


@pytest.mark.parametrize("rank", [3, 8, 20])
def test_a_rank_above_that_of_the_metric_is_the_pseudo_inverse(rank: int) -> None:
    phi, g = linear(rows=3), draw(2, 2)
    eigen = PaperEigen(phi, rank=rank)
    expected = (torch.linalg.pinv(phi.metric) @ g.flatten(1).T).T.view_as(g)
    torch.testing.assert_close(eigen(draw(2, 1), g), expected)
    assert 0 < eigen.logged["energy"] < 1


def test_in_single_precision_rounding_does_not_pass_for_eigenvalues() -> None:
    phi = linear(rows=3)
    single = Linear(phi.a.float())
    g = draw(2, 2).float()
    expected = (torch.linalg.pinv(phi.metric) @ g.double().flatten(1).T).T.view_as(g)
    found = PaperEigen(single, rank=8)(draw(2, 1).float(), g)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-5)


def test_a_batch_is_its_images_one_by_one() -> None:
    x, g = draw(4, 1), draw(4, 2)
    eigen = PaperEigen(linear(kind=Curved), rank=3, tolerance=1e-10)
    together = eigen(x, g)
    alone = torch.cat([eigen(x[i : i + 1], g[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)


def test_a_zero_gradient_gives_nothing_and_does_not_count() -> None:
    g = draw(2, 2)
    g[0] = 0.0
    eigen = PaperEigen(linear(), rank=3)
    found = eigen(draw(2, 1), g)
    assert torch.equal(found[0], torch.zeros_like(found[0]))
    energy = eigen.logged["energy"]
    eigen(draw(2, 1)[1:], g[1:])
    assert eigen.logged["energy"] == pytest.approx(energy)


def test_a_metric_that_sees_nothing_gives_nothing() -> None:
    eigen = PaperEigen(Linear(torch.zeros(2, D, dtype=torch.float64)), rank=3)
    found = eigen(draw(2, 1), draw(2, 2))
    assert torch.equal(found, torch.zeros_like(found))
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


def test_images_larger_than_the_space_that_is_searched() -> None:
    """The top of a large spectrum, without exhausting the space."""
    n = 400
    values = torch.linspace(1.0, 10.0, n, dtype=torch.float64)
    x = torch.zeros(2, 1, 20, 20, dtype=torch.float64)
    found = top_eigenspace(
        lambda v: values.view_as(v[:1]) * v, x, rank=5, tolerance=1e-6, products=300
    )
    assert found.products < 300
    torch.testing.assert_close(found.values, values.flip(0)[:5].expand(2, -1))
    assert found.vectors.shape == (2, 5, n)


def test_few_looks_at_the_residuals_cost_few_products_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n, tolerance = 400, 1e-6
    values = torch.logspace(1.0, -2.0, n, dtype=torch.float64)
    x = torch.zeros(2, 1, 20, 20, dtype=torch.float64)

    def found(tolerance: float, products: int) -> Eigenspace:
        return top_eigenspace(
            lambda v: values.view_as(v[:1]) * v, x, rank=5, tolerance=tolerance, products=products
        )

    least = next(k for k in range(5, n) if float(found(0.0, k).residuals.max()) <= tolerance)
    looks: list[int] = []
    ritz = Krylov.ritz
    monkeypatch.setattr(Krylov, "ritz", lambda space: (looks.append(1), ritz(space))[1])
    assert least <= found(tolerance, n).products <= 1.125 * least + 4
    assert len(looks) <= least / 4
