"""The pullback metric against Jacobians formed in full and against the distance itself."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from inversight.embeddings.lpips import Lpips, Net, random_backbone
from inversight.embeddings.network import StageEmbedding
from inversight.embeddings.pullback import PullbackMetric, dot, recorded_gram
from inversight.models.networks import build_classifier
from inversight.settings import ClassifierArchitecture

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


def stages_of(architecture: ClassifierArchitecture, size: int) -> StageEmbedding:
    """A public network's distance, in float64, with statistics that are no identity."""
    rng = torch.Generator().manual_seed(0)
    saved = build_classifier(
        architecture,
        classes=("a", "b"),
        image_shape=(1, size, size),
        width=4,
        mean=(0.5,),
        std=(0.4,),
        rng=rng,
    )
    for module in saved.module.double().eval().requires_grad_(False).modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5, generator=rng)
            module.running_var.uniform_(0.5, 2.0, generator=rng)
    return StageEmbedding("public", saved)


@pytest.mark.parametrize("architecture", get_args(ClassifierArchitecture))
@pytest.mark.parametrize("size", [8, 24])
def test_products_of_a_public_network_equal_the_recorded_ones(
    architecture: ClassifierArchitecture, size: int
) -> None:
    """Images of another size and of colour, which the embedding brings to its own."""
    embedding, x, v = stages_of(architecture, size), pictures(3), pictures(3, 2) - 0.5
    expected = 2.0 * recorded_gram(embedding, x)(v)
    torch.testing.assert_close(PullbackMetric(embedding, x).product(v), expected)
    half = PullbackMetric(embedding, x, dtype=torch.bfloat16).product(v)
    assert float((half - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize("kind", ["tiny", "stages"])
def test_the_quadratic_form_is_the_distances_second_order(kind: str) -> None:
    """d(x, x + h v) = h^2 / 2 * v^T M v + O(h^3)."""
    embedding: object = Tiny()
    if kind == "stages":
        embedding = stages_of("vgg", 8)
    rng = torch.Generator().manual_seed(4)
    shape = SHAPE if kind == "tiny" else (1, 8, 8)
    x = torch.rand(2, *shape, generator=rng, dtype=torch.float64)
    v = torch.randn(2, *shape, generator=rng, dtype=torch.float64)
    form = dot(v, PullbackMetric(embedding, x).product(v))  # type: ignore[arg-type]
    h = 1e-5
    near, far = embedding(x), embedding(x + h * v)  # type: ignore[operator]
    distance = sum((a - b).square().sum(1) for a, b in zip(near, far, strict=True))
    torch.testing.assert_close(2 * distance / h**2, form, rtol=1e-3, atol=0.0)


@pytest.fixture(scope="module", params=get_args(Net))
def lpips(request: pytest.FixtureRequest) -> Lpips:
    """LPIPS on random weights in float64, so that finite differences can be small."""
    backbone = random_backbone(request.param, torch.Generator().manual_seed(0))
    made = Lpips(request.param, size=32, backbone=backbone, smooth=True)
    made._network.double()
    made._linear = [root.double() for root in made._linear]
    return made


def pictures(n: int, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 24, 24, generator=rng, dtype=torch.float64)


def test_products_are_finite_differences_of_lpips(lpips: Lpips) -> None:
    """u^T M v = d2/dsdt d(x, x + s u + t v), by differences of the distance alone."""
    x, v, u = pictures(2), pictures(2, 2) - 0.5, pictures(2, 3) - 0.5
    found = dot(u, PullbackMetric(lpips, x).product(v))
    h = 1e-6

    @torch.no_grad()
    def distance(step: Tensor) -> Tensor:
        pairs = zip(lpips(x), lpips(x + step), strict=True)
        return torch.stack([(a - b).square().sum(1) for a, b in pairs]).sum(0)

    # The distance is quadratic near 0: its polar form needs no more than two values.
    expected = (distance(h * (u + v)) - distance(h * (u - v))) / (2 * h**2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0.0)


def test_lpips_own_products_equal_the_recorded_ones(lpips: Lpips) -> None:
    x, v = pictures(3), pictures(3, 2) - 0.5
    kept = v.clone()
    metric = PullbackMetric(lpips, x)
    expected = 2.0 * recorded_gram(lpips, x)(v)
    for _ in range(2):
        # 1e-8 under the root, where the length of features is taken, is left out in ours.
        torch.testing.assert_close(metric.product(v), expected, rtol=1e-4, atol=1e-7)
    assert torch.equal(v, kept)
    grey = x[:, :1]
    torch.testing.assert_close(
        PullbackMetric(lpips, grey).product(v[:, :1]),
        2.0 * recorded_gram(lpips, grey)(v[:, :1]), rtol=1e-4, atol=1e-7,
    )  # fmt: skip


def test_lpips_metric_is_symmetric_and_positive_semi_definite(lpips: Lpips) -> None:
    x = pictures(1)
    metric = PullbackMetric(lpips, x)
    basis = torch.randn(12, *x.shape[1:], generator=torch.Generator().manual_seed(5)).double()
    images = torch.cat([metric.product(v[None]) for v in basis])
    small = basis.flatten(1) @ images.flatten(1).T
    torch.testing.assert_close(small, small.T)
    assert float(torch.linalg.eigvalsh(small).min()) > 0.0


def test_lpips_products_of_a_batch_are_those_of_its_images(lpips: Lpips) -> None:
    x, v = pictures(3), pictures(3, 2)
    found = PullbackMetric(lpips, x).product(v)
    for i in range(3):
        alone = PullbackMetric(lpips, x[i : i + 1]).product(v[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], alone)


def test_lpips_at_black_grey_and_white_images(lpips: Lpips) -> None:
    x = torch.tensor([0.0, 0.5, 1.0]).double().view(3, 1, 1, 1).expand(3, 3, 24, 24)
    v = pictures(3, 2)
    found = PullbackMetric(lpips, x).product(v)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found, 2.0 * recorded_gram(lpips, x)(v), rtol=1e-4, atol=1e-7)


def test_half_precision_products_are_close(lpips: Lpips) -> None:
    x, v = pictures(2), pictures(2, 2) - 0.5
    exact = PullbackMetric(lpips, x).product(v)
    half = PullbackMetric(lpips, x, dtype=torch.bfloat16).product(v)
    assert half.dtype == exact.dtype
    assert float((half - exact).norm() / exact.norm()) < 0.02


def test_no_gradient_reaches_the_callers_images() -> None:
    x = batch(2)
    with torch.no_grad():
        product = PullbackMetric(Tiny(), x).product(x)
    assert not x.requires_grad and not product.requires_grad
