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
from tests.draws import rng, uniform


def classifier(
    architecture: ClassifierArchitecture = "resnet", channels: int = 1
) -> SavedClassifier:
    saved = build_classifier(
        architecture, classes=("a", "b", "c"), image_shape=(channels, 16, 16), width=4,
        mean=(0.4,) * channels, std=(0.2,) * channels, rng=rng(3),
    )  # fmt: skip
    saved.module.eval().requires_grad_(False)
    return saved


@pytest.mark.parametrize("architecture", ["resnet", "vgg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_stage_distance_is_the_mean_over_stages_and_positions(
    architecture: ClassifierArchitecture, channels: int
) -> None:
    saved = classifier(architecture, channels)
    embedding = StageEmbedding("public", saved)
    assert isinstance(embedding, Embedding)
    a, b = uniform(4, channels, 16, 16), uniform(3, channels, 16, 16, seed=1)
    found = squared_distances(embedding(a), embedding(b))
    assert float(found.min()) > 0 and float(found.max()) <= 4
    stages = []
    for maps in zip(*(saved.module.stage_maps((x - 0.4) / 0.2) for x in (a, b)), strict=True):
        f, g = (m / (m.square().sum(1, keepdim=True) + 1e-6).sqrt() for m in maps)
        stages.append((f[:, None] - g[None, :]).square().sum(2).mean((2, 3)))
    torch.testing.assert_close(found.float(), torch.stack(stages).mean(0), rtol=1e-4, atol=0)


def test_stage_distance_of_opposite_maps_is_four() -> None:
    saved = classifier()

    class Signs(nn.Module):
        def stage_maps(self, x: Tensor) -> list[Tensor]:
            return [x.mean((2, 3), keepdim=True).sign().expand(-1, 5, 3, 3) * 100]

    object.__setattr__(saved, "module", Signs())
    black, white = map(StageEmbedding("public", saved), torch.arange(2.0).view(2, 1, 1, 1, 1))
    assert float(squared_distances(black, white)) == pytest.approx(4.0)


@pytest.mark.parametrize("pooled", [False, True])
def test_embeds_each_image_alone(pooled: bool) -> None:
    saved, name = classifier(), "public"
    embedding: Embedding = StageEmbedding(name, saved)
    if pooled:
        embedding = PooledEmbedding(name, target_of(saved, name))
    x = uniform(5, 3, 24, 24)
    alone = zip(*map(embedding, x.split(1)), strict=True)
    for block, rows in zip(embedding(x), alone, strict=True):
        torch.testing.assert_close(block, torch.cat(rows), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["resnet", "vgg"])
def test_pooled_features_are_the_penultimate_layer(architecture: ClassifierArchitecture) -> None:
    saved = classifier(architecture)
    embedding = PooledEmbedding("evaluator", target_of(saved, "evaluator"))
    x, module = uniform(4, 1, 16, 16), saved.module
    features, logits = embedding.with_logits(x)
    last = module.stage_maps((x - 0.4) / 0.2)[-1]
    expected = torch.relu(module.norm(last)).mean((2, 3))
    for found in (features, *embedding(x)):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        logits, expected @ module.classifier.weight.T + module.classifier.bias
    )
    assert not module.classifier._forward_pre_hooks  # the hook is removed afterwards


def test_rejects_networks_without_a_usable_last_layer() -> None:
    def target(module: nn.Module) -> Target:
        return Target(module, ("a", "b"), (1, 8, 8), (0.0,), (1.0,), "mine:net")

    with pytest.raises(TargetError, match=r"mine:net: has no torch.nn.Linear"):
        PooledEmbedding("evaluator", target(nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten())))

    idle = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    idle[1].register_module("unused", nn.Linear(2, 2))
    with pytest.raises(TargetError, match="never called"):
        PooledEmbedding("evaluator", target(idle))(uniform(1, 1, 8, 8))
