"""The pullback metric against Jacobians formed in full and against the distance itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from inversight.embeddings.network import StageEmbedding
from inversight.embeddings.pullback import PullbackMetric, dot
from inversight.networks import build_classifier

SHAPE = (1, 4, 4)
N = 16


class Tiny:
    """Two smooth blocks of a small random network, in float64."""

    name = "tiny"

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        self.conv = torch.randn(3, 1, 3, 3, generator=rng, dtype=torch.float64)
        self.linear = torch.randn(5, N, generator=rng, dtype=torch.float64)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        first = torch.tanh(nn.functional.conv2d(images, self.conv)).flatten(1)
        second = torch.sin(images.flatten(1) @ self.linear.T)
        return first, second


def batch(n: int, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(n, *SHAPE, generator=rng, dtype=torch.float64)


def full(embedding: Tiny, image: Tensor) -> Tensor:
    """M = 2 J^T J of one image (1, 4, 4), formed in full."""

    def features(x: Tensor) -> Tensor:
        return torch.cat(embedding(x.view(1, *SHAPE)), dim=1)[0]

    j = torch.autograd.functional.jacobian(features, image.flatten())
    return 2 * j.T @ j


def test_products_equal_the_jacobians() -> None:
    embedding, x, v = Tiny(), batch(3), batch(3, 2) - 0.5
    metric = PullbackMetric(embedding, x)
    found = metric.product(v)
    again = metric.product(2 * v)  # the graph serves many products
    for i in range(3):
        expected = full(embedding, x[i]) @ v[i].flatten()
        torch.testing.assert_close(found[i].flatten(), expected)
        torch.testing.assert_close(again[i].flatten(), 2 * expected)


def test_symmetric_and_positive_semi_definite() -> None:
    x = batch(1)
    metric = PullbackMetric(Tiny(), x)
    columns = [metric.product(row.view(1, *SHAPE)).flatten() for row in torch.eye(N).double()]
    matrix = torch.stack(columns, dim=1)
    torch.testing.assert_close(matrix, matrix.T)
    assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-10


def test_a_batch_gives_what_each_image_gives_alone() -> None:
    embedding, x, v = Tiny(), batch(4), batch(4, 3)
    found = PullbackMetric(embedding, x).product(v)
    for i in range(4):
        alone = PullbackMetric(embedding, x[i : i + 1]).product(v[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], alone)


@pytest.mark.parametrize("kind", ["tiny", "stages"])
def test_the_quadratic_form_is_the_distances_second_order(kind: str) -> None:
    """d(x, x + h v) = h^2 / 2 * v^T M v + O(h^3)."""
    embedding: object = Tiny()
    if kind == "stages":
        saved = build_classifier(
            "vgg",
            classes=("a", "b"),
            image_shape=(1, 8, 8),
            width=4,
            mean=(0.5,),
            std=(0.5,),
            rng=torch.Generator().manual_seed(0),
        )
        saved.module.double().eval().requires_grad_(False)
        embedding = StageEmbedding("public", saved)
    rng = torch.Generator().manual_seed(4)
    shape = SHAPE if kind == "tiny" else (1, 8, 8)
    x = torch.rand(2, *shape, generator=rng, dtype=torch.float64)
    v = torch.randn(2, *shape, generator=rng, dtype=torch.float64)
    form = dot(v, PullbackMetric(embedding, x).product(v))  # type: ignore[arg-type]
    h = 1e-5
    near, far = embedding(x), embedding(x + h * v)  # type: ignore[operator]
    distance = sum((a - b).square().sum(1) for a, b in zip(near, far, strict=True))
    torch.testing.assert_close(2 * distance / h**2, form, rtol=1e-3, atol=0.0)


def test_power_iteration_approaches_the_largest_eigenvalue_from_below() -> None:
    embedding, x = Tiny(), batch(3)
    metric = PullbackMetric(embedding, x)
    largest = torch.stack([torch.linalg.eigvalsh(full(embedding, image))[-1] for image in x])
    few = metric.largest_eigenvalue(batch(3, 5), iterations=3)
    many = metric.largest_eigenvalue(batch(3, 5), iterations=300)
    assert (few <= largest * (1 + 1e-9)).all() and (few > 0).all()
    torch.testing.assert_close(many, largest, rtol=1e-3, atol=0.0)


def test_no_gradient_reaches_the_callers_images() -> None:
    x = batch(2)
    with torch.no_grad():
        product = PullbackMetric(Tiny(), x).product(x)
    assert not x.requires_grad and not product.requires_grad
