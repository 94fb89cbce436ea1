"""The layers of a multilayer perceptron are read out of a target; other networks are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.attacks.mlp import read_mlp
from inversight.core.errors import InputError
from inversight.models.backbone import features_of
from inversight.models.target import Target
from tests.attacks.perceptrons import PIXELS, SHAPE, network, target_of


class Functional(nn.Module):
    """Two linear layers with a function in between, after another of the pixels."""

    def __init__(
        self, between: Callable[[Tensor], Tensor] = F.relu,
        before: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:  # fmt: skip
        super().__init__()
        self.between, self.before = between, before
        self.first = nn.Linear(PIXELS, 7)
        self.last = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.between(self.first(self.before(x.flatten(1)))))
        return logits


def deep() -> Target:
    """Return a target of three layers after a normalisation of each pixel."""
    norm = nn.BatchNorm1d(PIXELS, dtype=torch.float64)
    norm.running_mean, norm.running_var = torch.linspace(0, 1, 2 * PIXELS).double().chunk(2)
    return target_of(network((PIXELS, 7, 5, 3)).insert(1, norm).eval(), classes=3)


@pytest.mark.parametrize("target", [deep(), target_of(Functional().double())])
def test_the_layers_give_the_targets_answers_and_count_no_query(target: Target) -> None:
    sent: list[int] = []
    mlp = read_mlp(replace(target, before=sent.append))
    assert not sent
    pixels = torch.rand(9, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(mlp.answers(pixels.flatten(1)), target(pixels))
    inputs = mlp.scale * pixels.flatten(1) + mlp.shift
    torch.testing.assert_close(mlp.pixels(inputs), pixels.flatten(1))
    assert torch.equal(mlp.first[:, :-1], mlp.weights[0])
    assert mlp.biases[0] is not None and torch.equal(mlp.first[:, -1], mlp.biases[0])
    assert sum(one.numel() for one in mlp.parameters) == sum(
        one.numel() for m in target.module.modules() if isinstance(m, nn.Linear) for one in m.parameters()
    )  # fmt: skip


MIXED = "what comes before its first linear layer mixes pixels"
NOT_IN_TURN = "its linear layers are not called one after the other"
TWO_LAYERS = [nn.Flatten(), nn.Linear(PIXELS, 7), nn.ReLU(), nn.Linear(7, 2)]


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten(), nn.Linear(3, 2)), "it has Conv2d layers"),
        (nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 2)), "it has a single layer"),
        (nn.Sequential(*TWO_LAYERS[:2], nn.Sigmoid(), TWO_LAYERS[3]), "it has Sigmoid after"),
        (nn.Sequential(*TWO_LAYERS, nn.Softmax(1)), "it has Softmax after"),
        (nn.Sequential(nn.AvgPool2d((2, 1)), nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)),
         "its first linear layer does not take the 16 pixels"),
        (nn.Flatten(), "it has no linear layer"),
        (Functional(lambda h: h.relu() + h), NOT_IN_TURN),
        (Functional(F.gelu), NOT_IN_TURN),
        (Functional(before=lambda x: x - x.mean(1, keepdim=True)), MIXED),
        (Functional(before=lambda x: x.square()), MIXED),
    ],
)  # fmt: skip
def test_other_networks_are_refused_with_the_reason_and_their_size(
    module: nn.Module, reason: str
) -> None:
    with pytest.raises(InputError, match=re.escape(f"of tiny, {reason}")) as caught:
        read_mlp(target_of(module.eval()))
    numbers = sum(one.numel() for one in module.parameters())
    assert f"its {numbers:,} parameters are the pixels of {numbers // PIXELS:,} images" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


class Headed(nn.Module):
    """Any function of the pixels, and a head of two linear layers."""

    def __init__(self, features: Callable[[Tensor], Tensor], between: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(1, 3, 3, padding=1)
        self.features = features
        self.head = nn.Sequential(nn.Linear(3, 7), between, nn.Linear(7, 2))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(self.backbone(x)))
        return logits


def headed(features: Callable[[Tensor], Tensor], between: nn.Module) -> Target:
    return replace(target_of(Headed(features, between).double()), frozen_until="backbone")


def test_the_head_of_a_frozen_backbone_is_read_whatever_comes_before_it() -> None:
    given = headed(lambda maps: maps.relu().mean((2, 3)), nn.ReLU())
    mlp = read_mlp(given)
    assert mlp.of_features
    images = torch.rand(4, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(mlp.answers(features_of(given, images)), given(images))


@pytest.mark.parametrize(
    ("features", "between", "frozen", "reason"),
    [
        (
            lambda maps: maps.mean((2, 3)),
            nn.Sigmoid(),
            "backbone",
            "it has Sigmoid after its first",
        ),
        (lambda maps: maps.mean((2, 3)), nn.ReLU(), "head.0", "it has a single layer"),
        (lambda maps: maps.mean((2, 3)), nn.ReLU(), "head", "it has no linear layer"),
        (lambda maps: maps.mean(3).mT, nn.ReLU(), "backbone", "logits|gets maps"),
    ],
)
def test_other_heads_are_refused(
    features: Callable[[Tensor], Tensor], between: nn.Module, frozen: str, reason: str
) -> None:
    given = replace(headed(features, between), frozen_until=frozen)
    with pytest.raises(
        InputError, match=f"head of Linear and ReLU layers behind.*{frozen}.*({reason})"
    ):
        read_mlp(given)
