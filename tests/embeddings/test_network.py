"""Embeddings of a trained classifier: form, range, and the penultimate layer by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from inversight.core.errors import TargetError
from inversight.embeddings import Embedding, PooledEmbedding, StageEmbedding, squared_distances
from inversight.models.networks import SavedClassifier, build_classifier
from inversight.models.target import Target, target_of
from inversight.settings import ClassifierArchitecture


def classifier(
    architecture: ClassifierArchitecture = "resnet", channels: int = 1
) -> SavedClassifier:
    saved = build_classifier(
        architecture,
        classes=("a", "b", "c"),
        image_shape=(channels, 16, 16),
        width=4,
        mean=(0.4,) * channels,
        std=(0.2,) * channels,
        rng=torch.Generator().manual_seed(3),
    )
    saved.module.eval().requires_grad_(False)
    return saved


def images(n: int, channels: int = 1, size: int = 16) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("architecture", ["resnet", "vgg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_stage_distance_is_the_mean_over_stages_and_positions(
    architecture: ClassifierArchitecture, channels: int
) -> None:
    saved = classifier(architecture, channels)
    embedding = StageEmbedding("public", saved)
    assert isinstance(embedding, Embedding)
    a, b = images(4, channels), images(3, channels)
    found = squared_distances(embedding(a), embedding(b))
    assert found.shape == (4, 3)
    assert float(found.min()) > 0 and float(found.max()) <= 4
    maps_a, maps_b = (saved.module.stage_maps((x - 0.4) / 0.2) for x in (a, b))
    for i in range(4):
        for j in range(3):
            stages = []
            for f, g in zip(maps_a, maps_b, strict=True):
                unit = [m / (m.square().sum(0) + 1e-6).sqrt() for m in (f[i], g[j])]
                stages.append((unit[0] - unit[1]).square().sum(0).mean())
            assert float(found[i, j]) == pytest.approx(float(torch.stack(stages).mean()), rel=1e-4)


def test_stage_range_is_reached_by_opposite_maps() -> None:
    saved = classifier()

    class Signs(nn.Module):
        def stage_maps(self, x: Tensor) -> list[Tensor]:
            return [x.mean((2, 3), keepdim=True).sign().expand(-1, 5, 3, 3) * 100]

    object.__setattr__(saved, "module", Signs())
    embedding = StageEmbedding("public", saved)
    black, white = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
    assert float(squared_distances(embedding(black), embedding(white))) == pytest.approx(4.0)


@pytest.mark.parametrize("kind", ["stages", "pooled"])
def test_rows_depend_on_their_own_image_alone(kind: str) -> None:
    saved = classifier()
    embedding: Embedding = (
        StageEmbedding("public", saved)
        if kind == "stages"
        else PooledEmbedding("public", target_of(saved, "public"))
    )
    x = images(5, 3, 24)
    whole = embedding(x)
    for i in range(5):
        for block, alone in zip(whole, embedding(x[i : i + 1]), strict=True):
            torch.testing.assert_close(block[i : i + 1], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["resnet", "vgg"])
def test_pooled_features_are_the_penultimate_layer(architecture: ClassifierArchitecture) -> None:
    saved = classifier(architecture)
    embedding = PooledEmbedding("evaluator", target_of(saved, "evaluator"))
    x = images(4)
    (found,) = embedding(x)
    module = saved.module
    last = module.stage_maps((x - 0.4) / 0.2)[-1]
    expected = torch.relu(module.norm(last)).mean((2, 3))
    torch.testing.assert_close(found, expected)
    features, logits = embedding.with_logits(x)
    torch.testing.assert_close(features, expected)
    weight, bias = module.classifier.weight, module.classifier.bias
    torch.testing.assert_close(logits, expected @ weight.T + bias)
    # The hook is gone afterwards.
    assert not module.classifier._forward_pre_hooks


def test_networks_without_a_usable_last_layer_are_refused() -> None:
    def target(module: nn.Module) -> Target:
        return Target(module, ("a", "b"), (1, 8, 8), (0.0,), (1.0,), "mine:net")

    convolutional = nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten())
    with pytest.raises(TargetError, match=r"mine:net: has no torch.nn.Linear"):
        PooledEmbedding("evaluator", target(convolutional))

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.unused = nn.Linear(64, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.first(x.flatten(1))
            return out

    with pytest.raises(TargetError, match="never called"):
        PooledEmbedding("evaluator", target(Idle()))(images(1, size=8))
