"""Weights scale gradients and stay with their images."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from inversight.core.seeding import generator
from inversight.defences import DownWeighting
from inversight.models.networks import build_classifier
from inversight.models.training import recipe_loss
from tests.defences.problem import CLASSES, LONGER, QUICK, defend, images, training_data


@pytest.mark.parametrize("loss", ["cross-entropy", "focal"])
def test_weight_0_is_removal_and_weights_add_up(loss: Literal["cross-entropy", "focal"]) -> None:
    recipe = replace(QUICK, loss=loss)
    module = build_classifier(
        "resnet", classes=CLASSES, image_shape=(1, 8, 8), width=4, mean=[0.4], std=[0.2],
        rng=generator(0),
    ).module.double().eval()  # fmt: skip
    data = images(1)
    x, y = data.floats().double(), data.labels
    kept = torch.arange(len(x)) % 3 > 0

    def gradient(rows: Tensor, weights: Tensor | None) -> Tensor:
        found = recipe_loss(module(x[rows]), y[rows], recipe, weights)
        parts = torch.autograd.grad(found, list(module.parameters()))
        return torch.cat([p.flatten() for p in parts])

    everything = torch.ones_like(kept)
    share = float(kept.double().mean())
    zero = gradient(everything, kept.double())
    torch.testing.assert_close(zero, share * gradient(kept, None))
    half = gradient(everything, torch.where(kept, 1.0, 0.5).double())
    torch.testing.assert_close(half, 0.5 * (zero + gradient(everything, None)))


def test_weights_stay_with_their_images() -> None:
    """Two of three classes, rows in random order, count for nothing: only the third is ever answered."""
    given = training_data(training=LONGER)
    given = replace(given, protected=given.private.labels != 1)
    answers = {}
    for weight in (0.0, 1.0):
        made = defend(DownWeighting(weight=weight), given)
        answers[weight] = made.target(given.private.floats()).argmax(1).unique().tolist()
    assert answers == {0.0: [1], 1.0: [0, 1, 2]}


def test_default_weight() -> None:
    assert defend(DownWeighting()).facts == {"weighted": 6, "weight": 0.1, "epochs": 8}
