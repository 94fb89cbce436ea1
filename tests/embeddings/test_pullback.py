"""The pullback metric against full Jacobians, PyTorch's graphs and the distance itself."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from inversight.embeddings import Embedding
from inversight.embeddings.lpips import Net
from inversight.embeddings.network import StageEmbedding
from inversight.embeddings.pullback import PullbackMetric, dot, recorded_gram
from inversight.models.networks import build_classifier
from inversight.settings import ClassifierArchitecture
from tests.draws import normal, rng, uniform
from tests.embeddings.networks import network

ARCHITECTURES, NETS = get_args(ClassifierArchitecture), get_args(Net)


class Tiny:
    """Two smooth blocks of a small random network, in float64."""

    name = "tiny"

    def __init__(self) -> None:
        self.conv, self.linear = normal(3, 1, 3, 3), normal(5, 16, seed=1)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        first = torch.tanh(nn.functional.conv2d(images, self.conv)).flatten(1)
        return first, torch.sin(images.flatten(1) @ self.linear.T)


def stages_of(architecture: ClassifierArchitecture, size: int = 8) -> StageEmbedding:
    """Return a public network's distance, in float64, with random statistics."""
    saved = build_classifier(
        architecture, classes=("a", "b"), image_shape=(1, size, size), width=4,
        mean=(0.5,), std=(0.4,), rng=rng(),
    )  # fmt: skip
    for module in saved.module.double().eval().requires_grad_(False).modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5, generator=rng(1))
            module.running_var.uniform_(0.5, 2.0, generator=rng(2))
    return StageEmbedding("public", saved)


def images(n: int = 2, channels: int = 3, size: int = 24, seed: int = 1) -> Tensor:
    return uniform(n, channels, size, size, seed=seed, dtype=torch.float64)


@pytest.fixture(scope="module", params=["tiny", *ARCHITECTURES, *(f"lpips-{n}" for n in NETS)])
def embedding(request: pytest.FixtureRequest) -> Embedding:
    """An embedding in float64, so that finite differences can be small."""
    if request.param == "tiny":
        return Tiny()
    if request.param.startswith("lpips-"):
        size = 16 if request.param == "lpips-vgg" else 32
        return network(request.param.removeprefix("lpips-"), size, torch.float64)
    return stages_of(request.param)


@pytest.fixture
def x(embedding: Embedding) -> Tensor:
    """Two images; those of public networks and LPIPS have another size than the network."""
    return images(channels=1, size=4) if embedding.name == "tiny" else images()


def check(embedding: Embedding, x: Tensor, v: Tensor) -> None:
    """Compare products with those by PyTorch's graphs."""
    expected = 2.0 * recorded_gram(embedding, x)(v)
    metric, kept = PullbackMetric(embedding, x), v.clone()
    for _ in range(2):
        # Our LPIPS leaves out the 1e-8 under the root of the features' length.
        rtol, atol = (1e-4, 1e-7) if embedding.name.startswith("lpips") else (1e-7, 1e-7)
        torch.testing.assert_close(metric.product(v), expected, rtol=rtol, atol=atol)
    assert torch.equal(v, kept)


def test_products_equal_the_full_jacobians() -> None:
    embedding, x, v = Tiny(), images(3, 1, 4), images(3, 1, 4, seed=2) - 0.5
    metric = PullbackMetric(embedding, x)
    for factor in (1, 2):  # the graph serves many products
        found = metric.product(factor * v)
        for image, direction, product in zip(x, v, found, strict=True):
            j = torch.autograd.functional.jacobian(
                lambda flat: torch.cat(embedding(flat.view(1, 1, 4, 4)), dim=1)[0], image.flatten()
            )
            expected = factor * 2 * j.T @ (j @ direction.flatten())
            torch.testing.assert_close(product.flatten(), expected)


def test_products_equal_the_recorded_ones(embedding: Embedding, x: Tensor) -> None:
    v = images(*x.shape[:3], seed=2) - 0.5
    check(embedding, x, v)
    check(embedding, x[:, :1], v[:, :1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_products_of_larger_public_networks(architecture: ClassifierArchitecture) -> None:
    check(stages_of(architecture, 24), images(), images(seed=2) - 0.5)


def test_products_at_constant_images(embedding: Embedding, x: Tensor) -> None:
    flat = torch.tensor([0.0, 1.0]).double().view(2, 1, 1, 1).expand_as(x)
    check(embedding, flat, images(*x.shape[:3], seed=2))


def test_symmetric_and_positive_definite(embedding: Embedding, x: Tensor) -> None:
    metric = PullbackMetric(embedding, x[:1])
    basis = normal(12, *x.shape[1:], seed=5)
    products = torch.cat([metric.product(v[None]) for v in basis])
    small = basis.flatten(1) @ products.flatten(1).T
    torch.testing.assert_close(small, small.T)
    assert float(torch.linalg.eigvalsh(small).min()) > 0.0


def test_images_do_not_affect_each_other(embedding: Embedding, x: Tensor) -> None:
    v = images(*x.shape[:3], seed=2)
    alone = [PullbackMetric(embedding, x[[i]]).product(v[[i]]) for i in range(2)]
    torch.testing.assert_close(PullbackMetric(embedding, x).product(v), torch.cat(alone))


def test_metric_is_the_second_derivative_of_the_distance(embedding: Embedding, x: Tensor) -> None:
    """u^T M v = d2/dsdt d(x, x + s u + t v), by differences of the distance alone."""
    v, u = (images(*x.shape[:3], seed=seed) - 0.5 for seed in (2, 3))
    found = dot(u, PullbackMetric(embedding, x).product(v))
    h = 1e-6

    @torch.no_grad()
    def distance(step: Tensor) -> Tensor:
        pairs = zip(embedding(x), embedding(x + step), strict=True)
        return torch.stack([(a - b).square().sum(1) for a, b in pairs]).sum(0)

    # The distance is quadratic near 0: its polar form needs no more than two values.
    expected = (distance(h * (u + v)) - distance(h * (u - v))) / (2 * h**2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0.0)


def test_half_precision_products_are_close(embedding: Embedding, x: Tensor) -> None:
    v = images(*x.shape[:3], seed=2) - 0.5
    exact = PullbackMetric(embedding, x).product(v)
    half = PullbackMetric(embedding, x, dtype=torch.bfloat16).product(v)
    assert half.dtype == exact.dtype
    assert float((half - exact).norm() / exact.norm()) < 0.02


def test_does_not_track_gradients_of_the_callers_images() -> None:
    x = images(channels=1, size=4)
    with torch.no_grad():
        product = PullbackMetric(Tiny(), x).product(x)
    assert not x.requires_grad and not product.requires_grad
