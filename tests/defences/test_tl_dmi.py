"""Frozen layers come from public images and hold nothing of the private ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from inversight.core.errors import InputError
from inversight.core.seeding import generator
from inversight.defences import TLDMI
from inversight.defences.tl_dmi import layers_below_logits
from inversight.models.networks import Classifier
from inversight.models.training import rotation_task, train_classifier
from tests.defences.problem import SHORT, defend, images, training_data, weights


@pytest.mark.parametrize("architecture", ["resnet", "vgg"])
def test_frozen_layers_are_those_of_the_pretraining(architecture: str) -> None:
    given = training_data(size=16, training=replace(SHORT, architecture=architecture))
    public = train_classifier(
        rotation_task(given.public),
        training=replace(given.training, most_steps=2000),
        image_shape=given.image_shape,
        rng=generator(3),
    ).classifier
    made = defend(TLDMI(freeze=0.5), given)
    layers = layers_below_logits(public.module)
    frozen = layers[: len(layers) // 2]
    assert made.facts["frozen_layers"] == len(frozen) > 2
    before, after = public.module.state_dict(), weights(made)
    for name in before:
        layer = name.rpartition(".")[0]
        if layer in frozen:
            assert torch.equal(before[name], after[name]), name
        elif name.endswith("weight"):
            assert not torch.equal(before[name], after[name]), name
    assert made.target.mean == public.mean and made.target.std == public.std


def test_layers_go_from_the_input_on() -> None:
    module = defend(TLDMI(), training_data(training=SHORT)).target.module
    assert isinstance(module, Classifier)
    layers = layers_below_logits(module)
    assert layers[0] == "stem" and layers[-1] == "norm" and "classifier" not in layers


def test_private_images_do_not_reach_frozen_layers() -> None:
    given = training_data(training=SHORT)
    other = replace(given, private=replace(images(9), ids=given.private.ids))
    one, two = (weights(defend(TLDMI(freeze=1.0), m)) for m in (given, other))
    differing = {name for name in one if not torch.equal(one[name], two[name])}
    assert differing == {"classifier.weight", "classifier.bias"}


def test_without_public_images() -> None:
    given = training_data()
    nothing = given.public.select(torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match="needs public images"):
        defend(TLDMI(), replace(given, public=nothing))
