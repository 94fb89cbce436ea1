"""The small classifiers and their files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

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

OPTIONS = [
    NetworkOptions(),
    NetworkOptions(norm="group"),
    NetworkOptions(skipless=(-1,)),
    NetworkOptions(bottleneck=5),
    NetworkOptions(norm="group", skipless=(0, 1), bottleneck=2),
]


def build(
    architecture: ClassifierArchitecture,
    size: int,
    channels: int = 1,
    options: NetworkOptions | None = None,
) -> SavedClassifier:
    return build_classifier(
        architecture,
        classes=("a", "b", "c"),
        image_shape=(channels, size, size),
        width=4,
        mean=[0.4] * channels,
        std=[0.2] * channels,
        rng=generator(0),
        options=options or NetworkOptions(),
    )


@pytest.mark.parametrize("architecture", ["resnet", "vgg"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 9, 32, 100, 256])
def test_every_size(architecture: ClassifierArchitecture, size: int, channels: int) -> None:
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


@pytest.mark.parametrize("options", OPTIONS)
def test_the_file_keeps_the_options(tmp_path: Path, options: NetworkOptions) -> None:
    saved = build("resnet", 16, options=options)
    save_classifier(saved, tmp_path / FILE_NAME)
    again = load_classifier(tmp_path)
    x = torch.rand(2, 1, 16, 16, generator=generator(1))
    assert again.options == options
    assert torch.equal(saved.module.eval()(x), again.module(x))
    maps = again.module.stage_maps(x)
    assert torch.equal(again.module.classifier(again.module.pool(maps[-1])), again.module(x))


def test_options_from_a_later_version_are_refused(tmp_path: Path) -> None:
    saved = build("resnet", 16, options=NetworkOptions(norm="group"))
    save_classifier(saved, tmp_path / FILE_NAME)
    with safe_open(tmp_path / FILE_NAME, "pt") as handle:
        facts = json.loads(handle.metadata()["inversight.classifier"])
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    facts["options"]["attention"] = True
    save_file(tensors, tmp_path / FILE_NAME, {"inversight.classifier": json.dumps(facts)})
    with pytest.raises(TargetError, match="attention"):
        load_classifier(tmp_path)


def test_group_normalisation_looks_at_one_image() -> None:
    module = build("resnet", 16, options=NetworkOptions(norm="group")).module.train()
    assert not [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    x = torch.rand(3, 1, 16, 16, generator=generator(1))
    torch.testing.assert_close(module(x)[:1], module(x[:1]))


def test_a_bottleneck_starts_nearly_certain() -> None:
    module = build("vgg", 16, options=NetworkOptions(bottleneck=3)).module.eval()
    x = torch.rand(4, 1, 16, 16, generator=generator(1))
    mean, std = module.distribution(module.stage_maps(x)[-1])
    assert mean.shape == std.shape == (4, 3)
    assert float(std.min()) > 0.0 and float(std.max()) < 0.1
    with pytest.raises(ValueError, match="no bottleneck"):
        build("vgg", 16).module.distribution(x)


@pytest.mark.parametrize(("size", "stages"), [(8, 1), (15, 1), (16, 2), (32, 3), (64, 4), (256, 4)])
def test_stages(size: int, stages: int) -> None:
    assert stages_for(size) == stages == len(build("resnet", size).module.stages)


def test_stages_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="no stage 2: the network has 2"):
        build("resnet", 16, options=NetworkOptions(skipless=(2,)))
    with pytest.raises(ValueError, match="no skip connections"):
        build("vgg", 16, options=NetworkOptions(skipless=(-1,)))
