"""The last stage has no skip connection, the others keep theirs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from inversight.core.errors import InputError
from inversight.core.seeding import generator
from inversight.defences import RoLSS
from inversight.models.networks import Classifier
from tests.defences.problem import QUICK, defend, training_data


def test_only_the_last_stage_loses_its_skip_connection() -> None:
    module = defend(RoLSS(), training_data(size=16)).target.module
    shortcuts = [name for name in module.state_dict() if "shortcut" in name]
    assert shortcuts == ["stages.0.shortcut.weight"]
    assert isinstance(module, Classifier)
    block = module.stages[1]
    x = torch.randn(2, 8, 8, 8, generator=generator(0))
    long_way = block.conv2(F.relu(block.norm2(block.conv1(F.relu(block.norm1(x))))))
    assert torch.equal(block(x), long_way)


def test_all_stages() -> None:
    module = defend(RoLSS(stages=2), training_data(size=16)).target.module
    assert not [name for name in module.state_dict() if "shortcut" in name]


def test_networks_that_it_does_not_fit() -> None:
    with pytest.raises(InputError, match="a vgg has no skip connections"):
        defend(RoLSS(), training_data(training=replace(QUICK, architecture="vgg")))
    with pytest.raises(InputError, match="up to the network's 1, found 2"):
        defend(RoLSS(stages=2))
