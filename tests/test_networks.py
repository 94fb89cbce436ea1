"""The small classifiers and their files."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from inversight.errors import TargetError
from inversight.networks import (
    FILE_NAME,
    Architecture,
    SavedClassifier,
    build_classifier,
    load_classifier,
    save_classifier,
)
from inversight.seeding import generator


def build(architecture: Architecture, size: int, channels: int = 1) -> SavedClassifier:
    return build_classifier(
        architecture,
        classes=("a", "b", "c"),
        image_shape=(channels, size, size),
        width=4,
        mean=[0.4] * channels,
        std=[0.2] * channels,
        rng=generator(0),
    )


@pytest.mark.parametrize("architecture", ["resnet", "vgg"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 9, 32, 100, 256])
def test_every_size(architecture: Architecture, size: int, channels: int) -> None:
    module = build(architecture, size, channels).module.eval()
    x = torch.rand(2, channels, size, size, generator=generator(1))
    logits = module(x)
    assert logits.shape == (2, 3)
    maps = module.stage_maps(x)
    torch.testing.assert_close(module.classifier(module.pool(maps[-1])), logits)
    assert all(a.shape[2] > b.shape[2] for a, b in itertools.pairwise(maps))


def test_the_two_families_differ_and_the_seed_decides() -> None:
    names = [set(build(a, 16).module.state_dict()) for a in ("resnet", "vgg")]
    assert names[0] != names[1]
    one, same = build("resnet", 16).module, build("resnet", 16).module
    for a, b in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("whole_folder", [True, False])
def test_the_file_gives_the_classifier_back(tmp_path: Path, whole_folder: bool) -> None:
    saved = build("vgg", 16, 3)
    save_classifier(saved, tmp_path / FILE_NAME)
    again = load_classifier(tmp_path if whole_folder else tmp_path / FILE_NAME)
    x = torch.rand(2, 3, 16, 16, generator=generator(1))
    assert torch.equal(saved.module.eval()(x), again.module.eval()(x))
    for field in ("architecture", "width", "classes", "image_shape", "mean", "std"):
        assert getattr(again, field) == getattr(saved, field)


@pytest.mark.parametrize("damage", ["missing", "text", "foreign"])
def test_wrong_files(tmp_path: Path, damage: str) -> None:
    file = tmp_path / FILE_NAME
    if damage == "text":
        file.write_text("weights")
    elif damage == "foreign":
        save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(TargetError, match=str(file)):
        load_classifier(file)
