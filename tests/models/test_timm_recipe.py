"""Fine-tuning a network of timm by the loop of the audit's own classifiers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import loky  # noqa: F401  (makes its start method known)
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from inversight.core.errors import TargetError
from inversight.core.imaging import normalise
from inversight.core.seeding import generator
from inversight.models.recipes import Recipe, load_recipe
from inversight.models.target import accuracy_on
from inversight.models.timm_recipe import TimmRecipe
from inversight.models.training import train_module
from tests.models.test_recipes import CPU, IMAGES, QUICK, Net, assert_seed_decides, two_classes
from tests.refusals import refused

TINY = "timm:test_resnet"


def pretrained(file: Path, *, classes: int, channels: int = 3) -> str:
    """Write weights of a small network; return its spec."""
    with torch.random.fork_rng():
        torch.manual_seed(9)
        made = timm.create_model("test_resnet", num_classes=classes, in_chans=channels)
    save_file(made.state_dict(), file)
    return f"{TINY}?weights={file}"


def fine_tuning(spec: str = TINY, **more: Any) -> TimmRecipe:
    shape = more.pop("image_shape", (1, 32, 32))
    recipe = load_recipe(spec, training=replace(QUICK, **more), image_shape=shape)
    assert isinstance(recipe, TimmRecipe) and isinstance(recipe, Recipe)
    return recipe


def test_a_network_of_timm_learns() -> None:
    recipe, images = fine_tuning(epochs=10), two_classes(40)
    assert recipe.check(images, device=CPU) == () and "10 epochs" in recipe.description
    target = recipe.fit(images, seed=0, device=CPU)
    assert accuracy_on(target, images) == 1.0 and target.image_shape == (1, 32, 32)


def test_a_network_of_timm_is_trained_on_rectangles() -> None:
    recipe = replace(fine_tuning(epochs=1), image_shape=(1, 40, 32))
    assert recipe.check(IMAGES, device=CPU) == () and "at 40x32" in recipe.description
    assert recipe.fit(IMAGES, seed=0, device=CPU).image_shape == (1, 40, 32)


def test_a_network_of_timm_is_decided_by_its_seed() -> None:
    assert_seed_decides(fine_tuning(epochs=1))


@pytest.mark.parametrize(("classes", "skipped"), [(5, ("fc.weight", "fc.bias")), (2, ())])
def test_starts_from_pretrained_weights_but_a_head_for_other_classes(
    tmp_path: Path, classes: int, skipped: tuple[str, ...]
) -> None:
    """With no learning rate to speak of the network stays what it was; its channels are the weights'."""
    recipe = fine_tuning(
        pretrained(tmp_path / "w.safetensors", classes=classes), epochs=1, learning_rate=1e-20,
        weight_decay=0.0,
    )  # fmt: skip
    assert "timm:test_resnet from weights " in recipe.description
    assert str(tmp_path) not in recipe.description
    said = recipe.check(IMAGES, device=CPU)
    assert len(said) == bool(skipped) and all(name in said[0] for name in skipped)
    target = recipe.fit(IMAGES, seed=0, device=CPU)
    assert target.image_shape[0] == 3
    with torch.random.fork_rng():
        torch.manual_seed(9)
        expected = dict(timm.create_model("test_resnet", num_classes=classes).named_parameters())
    for name, value in target.module.named_parameters():
        if name not in skipped:
            torch.testing.assert_close(value, expected[name], atol=1e-12, rtol=0.0)
    config = timm.get_pretrained_cfg("test_resnet")
    assert target.mean == tuple(config.mean) and target.std == tuple(config.std)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("timm:resnet1", ("timm has no such model", "did you mean resnet")),
        ("timm:resnet18?weights=nowhere.safetensors", ("nowhere.safetensors: no such weights",)),
        ("timm:resnet18?weight=x", ("unknown setting weight",)),
    ],
)
def test_unknown_networks_and_weights_are_refused(spec: str, parts: tuple[str, ...]) -> None:
    with refused(f"--recipe {spec}: ", *parts, error=TargetError):
        load_recipe(spec, training=QUICK, image_shape=(1, 8, 8))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    spec = pretrained(tmp_path / "w.safetensors", classes=2).replace("test_resnet", "resnet18")
    with refused("has no conv1.weight, which resnet18 needs", error=TargetError):
        fine_tuning(spec).check(IMAGES, device=CPU)


def test_normalises_and_trains_what_it_is_given() -> None:
    """One step on one batch equals a step by hand."""
    training = replace(QUICK, epochs=1, batch_size=20, shift=0.0, warmup_epochs=0, optimiser="sgd",
                       learning_rate=0.1, momentum=0.0, weight_decay=0.0)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, by_hand = Net(2), Net(2)
    by_hand.load_state_dict(model.state_dict())
    train_module(
        model, IMAGES, training=training, image_shape=(1, 8, 8), normalisation=((0.4,), (0.3,)),
        rng=generator(0),
    )  # fmt: skip
    loss = F.cross_entropy(by_hand(normalise(IMAGES.floats(), [0.4], [0.3])), IMAGES.labels)
    loss.backward()
    for mine, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert theirs.grad is not None
        torch.testing.assert_close(mine, theirs - 0.1 * theirs.grad, atol=1e-5, rtol=1e-4)
