"""Models that are trained together are those that are trained one after another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from inversight.core.seeding import generator
from inversight.data import ImageSet, image_set
from inversight.models.networks import Classifier
from inversight.models.target import target_of
from inversight.models.together import join_models, split_models, train_together
from inversight.models.training import train_classifier
from inversight.settings import ClassifierArchitecture, Training

TRAINING = Training(width=3, epochs=2, batch_size=4, validation=0.0, warmup_epochs=1)
NAMES = ("a", "b", "c")


def images(seed: int, n: int = 10, channels: int = 1, size: int = 16) -> ImageSet:
    pixels = torch.randint(
        0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator(seed)
    )
    return image_set(
        pixels, [NAMES[i % 3] for i in range(n)], [f"{i:02d}" for i in range(n)], NAMES
    )


@pytest.mark.parametrize("architecture", ["resnet", "vgg"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_each_model_equals_one_trained_alone(
    architecture: ClassifierArchitecture, channels: int, optimiser: str
) -> None:
    training = replace(TRAINING, architecture=architecture, optimiser=optimiser)
    sets, shape = [images(i, channels=channels) for i in range(3)], (channels, 16, 16)
    # The first two have the same initial weights and batches, as a pair of shadow models.
    seeds = (5, 5, 6)
    together = train_together(
        sets, training=training, image_shape=shape, rngs=[generator(s) for s in seeds]
    )
    shown = torch.rand(4, channels, 16, 16, generator=generator(9))
    for one, own, seed in zip(together, sets, seeds, strict=True):
        alone = train_classifier(own, training=training, image_shape=shape, rng=generator(seed))
        assert one.mean == alone.classifier.mean and one.std == alone.classifier.std
        expected = target_of(alone.classifier, "")(shown)
        torch.testing.assert_close(target_of(one, "")(shown), expected, rtol=1e-3, atol=1e-4)


def test_joined_network_is_its_parts_side_by_side() -> None:
    parts = [
        Classifier("resnet", in_channels=1, num_classes=3, width=4, size=16).double().eval()
        for _ in range(3)
    ]
    joined = join_models(parts).double().eval()
    x = torch.rand(5, 3, 16, 16, dtype=torch.float64, generator=generator(0))
    expected = torch.cat([one(x[:, [i]]) for i, one in enumerate(parts)], dim=1)
    torch.testing.assert_close(joined(x), expected)
    other = [Classifier("resnet", in_channels=1, num_classes=3, width=4, size=16) for _ in range(3)]
    split_models(joined, other)
    for one, again in zip(parts, other, strict=True):
        torch.testing.assert_close(again.double().eval()(x[:, :1]), one(x[:, :1]))


def test_refuses_sets_of_different_sizes() -> None:
    with pytest.raises(ValueError, match="one size"):
        train_together(
            [images(0), images(1, n=9)], training=TRAINING, image_shape=(1, 16, 16),
            rngs=[generator(0), generator(1)],
        )  # fmt: skip
