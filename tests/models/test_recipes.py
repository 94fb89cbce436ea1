"""Recipes: what a model of each is trained on, what is wrong with a user's own, and what a seed decides."""

from __future__ import annotations

from dataclasses import replace

import torch

from inversight.core.seeding import generator
from inversight.data import ImageSet, image_set
from inversight.models.recipes import Recipe, TrainingRecipe
from inversight.models.target import Target, accuracy_on
from inversight.models.training import train_classifier
from inversight.settings import Training

CPU = torch.device("cpu")
QUICK = Training(width=4, epochs=4, batch_size=8, warmup_epochs=1, flip=False, rotation=0.0)


def two_classes(n: int = 10, channels: int = 1, size: int = 8) -> ImageSet:
    """Bright on the left, or bright on the right."""
    images = 0.1 * torch.rand(2 * n, channels, size, size, generator=generator(0))
    images[:n, :, :, : size // 2] += 0.8
    images[n:, :, :, size // 2 :] += 0.8
    labels, ids = ["left"] * n + ["right"] * n, [f"{i:03d}" for i in range(2 * n)]
    return image_set((images * 255).to(torch.uint8), labels, ids, ("left", "right"))


IMAGES = two_classes()


def same(*targets: Target) -> bool:
    one, other = (t.module.state_dict() for t in targets)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_seed_decides(recipe: Recipe) -> None:
    """Assert that one seed gives one model, whatever the random state before."""
    torch.manual_seed(1)
    one = recipe.fit(IMAGES, seed=3, device=CPU)
    torch.manual_seed(2)
    again = recipe.fit(IMAGES, seed=3, device=CPU)
    assert same(one, again) and not same(one, recipe.fit(IMAGES, seed=4, device=CPU))
    assert not one.module.training and not any(p.requires_grad for p in one.module.parameters())


def test_own_training_is_of_every_image_to_the_last_epoch() -> None:
    """Whatever the settings say of a validation split."""
    recipe = TrainingRecipe(QUICK, (1, 8, 8))
    assert isinstance(recipe, Recipe) and recipe.check(IMAGES, device=CPU) == ()
    assert_seed_decides(recipe)
    notes: list[tuple[int, int]] = []
    target = recipe.fit(
        IMAGES, seed=3, device=CPU, progress=lambda done, total, note="": notes.append((done, total))
    )  # fmt: skip
    assert notes[-1] == (4, 4) and target.classes == IMAGES.classes
    plain = train_classifier(
        IMAGES, training=replace(QUICK, validation=0.0), image_shape=(1, 8, 8), rng=generator(3)
    )
    torch.testing.assert_close(
        target.module.state_dict(), plain.classifier.module.state_dict(), atol=1e-4, rtol=1e-3
    )
    assert "resnet" in recipe.description


def test_own_training_learns_at_the_size_of_the_network() -> None:
    recipe = TrainingRecipe(replace(QUICK, epochs=12), (3, 16, 16))
    target = recipe.fit(IMAGES, seed=0, device=CPU)
    assert target.image_shape == (3, 16, 16) and accuracy_on(target, IMAGES) == 1.0
