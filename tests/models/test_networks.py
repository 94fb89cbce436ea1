"""The small classifiers and their files."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from inversight.core.checkpoints import read_tensors
from inversight.core.errors import TargetError
from inversight.core.seeding import generator
from inversight.models.networks import (
    FILE_NAME,
    NetworkOptions,
    SavedClassifier,
    build_classifier,
    load_classifier,
    save_classifier,
    stages_for,
)
from inversight.settings import ClassifierArchitecture

X = torch.rand(4, 1, 16, 16, generator=generator(1))


def build(
    architecture: ClassifierArchitecture, size: int = 16, channels: int = 1, **options: Any
) -> SavedClassifier:
    return build_classifier(
        architecture, classes=("a", "b", "c"), image_shape=(channels, size, size), width=4,
        mean=[0.4] * channels, std=[0.2] * channels, rng=generator(0),
        options=NetworkOptions(**options),
    )  # fmt: skip


@pytest.mark.parametrize("architecture", ["resnet", "vgg"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 9, 32, 100, 256])
def test_takes_every_size(architecture: ClassifierArchitecture, size: int, channels: int) -> None:
    module = build(architecture, size, channels).module.eval()
    x = torch.rand(2, channels, size, size, generator=generator(1))
    logits = module(x)
    assert logits.shape == (2, 3)
    maps = module.stage_maps(x)
    torch.testing.assert_close(module.classifier(module.pool(maps[-1])), logits)
    assert all(a.shape[2] > b.shape[2] for a, b in itertools.pairwise(maps))


def test_families_differ_and_the_seed_decides() -> None:
    resnet, again, vgg = (build(a).module.state_dict() for a in ("resnet", "resnet", "vgg"))
    assert set(resnet) != set(vgg)
    assert all(torch.equal(resnet[name], again[name]) for name in resnet)


@pytest.mark.parametrize(
    ("architecture", "channels", "options"),
    [
        ("vgg", 3, {}),
        ("resnet", 1, {}),
        ("resnet", 1, {"norm": "group"}),
        ("resnet", 1, {"skipless": (-1,)}),
        ("resnet", 1, {"bottleneck": 5}),
        ("resnet", 1, {"norm": "group", "skipless": (0, 1), "bottleneck": 2}),
    ],
)
def test_file_gives_the_classifier_back(
    tmp_path: Path, architecture: ClassifierArchitecture, channels: int, options: dict[str, Any]
) -> None:
    saved = build(architecture, channels=channels, **options)
    save_classifier(saved, tmp_path / FILE_NAME)
    x = X.expand(-1, channels, -1, -1)
    for path in (tmp_path, tmp_path / FILE_NAME):
        loaded = load_classifier(path)
        assert replace(loaded, module=saved.module) == saved
        module, logits = loaded.module, saved.module.eval()(x)
        assert torch.equal(module(x), logits)
        assert torch.equal(module.classifier(module.pool(module.stage_maps(x)[-1])), logits)


@pytest.mark.parametrize("damage", ["missing", "text", "foreign"])
def test_rejects_wrong_files(tmp_path: Path, damage: str) -> None:
    file = tmp_path / FILE_NAME
    if damage == "text":
        file.write_text("weights")
    elif damage == "foreign":
        save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(TargetError, match=str(file)):
        load_classifier(file)


def test_rejects_unknown_options(tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME
    save_classifier(build("resnet", norm="group"), file)
    metadata, tensors = read_tensors(file)
    (key,) = metadata
    facts = json.loads(metadata[key])
    facts["options"]["attention"] = True
    save_file(tensors, file, {key: json.dumps(facts)})
    with pytest.raises(TargetError, match="attention"):
        load_classifier(file)


def test_group_normalisation_treats_images_separately() -> None:
    module = build("resnet", norm="group").module.train()
    assert not [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    torch.testing.assert_close(module(X)[:1], module(X[:1]))


def test_code_of_an_untrained_bottleneck_has_little_spread() -> None:
    module = build("vgg", bottleneck=3).module.eval()
    mean, std = module.distribution(module.stage_maps(X)[-1])
    assert mean.shape == std.shape == (4, 3)
    assert float(std.min()) > 0.0 and float(std.max()) < 0.1
    with pytest.raises(ValueError, match="no bottleneck"):
        build("vgg").module.distribution(X)


@pytest.mark.parametrize(("size", "stages"), [(8, 1), (15, 1), (16, 2), (32, 3), (64, 4), (256, 4)])
def test_stages_depend_on_the_size(size: int, stages: int) -> None:
    assert stages_for(size) == stages == len(build("resnet", size).module.stages)


def test_rejects_missing_stages_and_skip_connections_of_a_vgg() -> None:
    with pytest.raises(ValueError, match="no stage 2: the network has 2"):
        build("resnet", skipless=(2,))
    with pytest.raises(ValueError, match="no skip connections"):
        build("vgg", skipless=(-1,))
