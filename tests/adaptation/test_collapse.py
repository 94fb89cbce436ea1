"""The entropy of the target's mean prediction, on a prior whose images are known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from inversight.adaptation.collapse import class_entropy
from inversight.models.target import Target


@dataclass(frozen=True)
class Levels:
    """A prior whose images have one of ``levels`` grey levels, each as often."""

    levels: int
    image_shape: tuple[int, int, int] = (1, 8, 8)

    def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
        return (torch.arange(n) % self.levels).float()

    def __call__(self, latents: Tensor) -> Tensor:
        return (latents / 10.0).view(-1, 1, 1, 1).expand(-1, *self.image_shape)


class Nearest(nn.Module):
    """Confident logits of the nearest of four grey levels."""

    def forward(self, x: Tensor) -> Tensor:
        return -1e4 * (x.mean(dim=(1, 2, 3))[:, None] - torch.arange(4) / 10.0).square()


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_entropy_of_equally_frequent_classes(levels: int) -> None:
    target = Target(Nearest(), ("a", "b", "c", "d"), (1, 8, 8), (0.0,), (1.0,), "test")
    found = class_entropy(target, Levels(levels), rng=torch.Generator(), images=64, batch=24)
    assert found == pytest.approx(math.log(levels), abs=1e-3)
