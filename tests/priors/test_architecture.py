"""Against what NVIDIA's published code computed, and against its training constants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from inversight.core.config import from_mapping
from inversight.core.errors import ConfigError
from inversight.priors.architecture import Architecture, published_architecture
from inversight.priors.stylegan2 import Discriminator, Generator
from inversight.settings import published_training
from tests.priors import golden

GOLDEN = golden.read()
CASES: dict[str, Any] = GOLDEN["cases"]
STATES: dict[str, Any] = GOLDEN["states"]


def assert_near(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_values_of_the_published_code(name: str) -> None:
    case = CASES[name]
    architecture = from_mapping(Architecture, case["architecture"])
    generate, judge = Generator(architecture), Discriminator(architecture)
    golden.fill(generate)
    golden.fill(judge)
    z, c = golden.latents(case["batch"], architecture.z_dim, architecture.c_dim)
    w = generate.mapping(z, c)
    ws = generate.truncated(w, case.get("psi", 1.0), case.get("cutoff"))
    rows = ws if ws.dim() == 3 else ws[:, None].expand(-1, generate.num_ws, -1)
    assert_near(golden.pick(rows), case["ws"])
    for given in (ws, rows):  # one w for all layers is the same as that w for each
        images = generate(given, noise="const")
        assert_near(golden.pick(images), case["const"])
        assert_near(images.square().mean(), case["const_mean_square"])
    assert_near(golden.pick(generate(ws, noise="none")), case["none"])
    assert_near(judge(images, c), case["logits"])


@pytest.mark.parametrize("key", STATES)
def test_names_and_shapes_of_published_states(key: str) -> None:
    known = STATES[key]
    architecture = published_architecture(known["config"], size=known["size"], c_dim=known["c_dim"])
    with torch.device("meta"):
        generate, judge = Generator(architecture), Discriminator(architecture)
    assert golden.digest(generate) == known["generator"]
    assert golden.digest(judge) == known["discriminator"]


def test_names_as_published() -> None:
    architecture = published_architecture("paper256", size=32, c_dim=3)
    with torch.device("meta"):
        g, d = (network(architecture).state_dict() for network in (Generator, Discriminator))
    assert {"mapping.fc0.weight", "mapping.w_avg", "mapping.embed.bias"} <= g.keys()
    assert {"synthesis.b4.const", "synthesis.b8.conv0.affine.weight"} <= g.keys()
    assert {"synthesis.b8.conv0.noise_strength", "synthesis.b4.torgb.bias"} <= g.keys()
    assert {
        "b32.fromrgb.weight",
        "b32.skip.weight",
        "b4.out.bias",
        "mapping.fc7.weight",
    } <= d.keys()


def test_networks_of_the_configurations() -> None:
    paper = published_architecture("paper256", size=256)
    assert [paper.width_at(r) for r in paper.resolutions] == [512, 512, 512, 512, 256, 128, 64]
    assert [r for r in paper.resolutions if paper.half_at(r)] == [32, 64, 128, 256]
    assert (paper.num_ws, paper.group, paper.conv_clamp) == (14, 8, 256.0)
    cifar = published_architecture("cifar", size=32)
    assert [r for r in cifar.resolutions if cifar.half_at(r)] == [8, 16, 32]  # never 4x4
    assert (cifar.discriminator, cifar.mapping_depth, cifar.group) == ("orig", 2, 32)
    assert published_architecture("auto", size=512, gpus=8).channel_base == 32768
    with pytest.raises(ConfigError, match="paper512: size: expected a power of two, found 100"):
        published_architecture("paper512", size=100)


def test_training_of_the_configurations() -> None:
    paper = published_training("paper256", size=256)
    assert (paper["steps"] * paper["batch_size"], paper["r1"]) == (25_000_000, 1.0)
    assert (paper["ema_images"], paper["ema_rampup"], paper["mixing"]) == (20_000, None, 0.9)
    assert (paper["path_length"], paper["path_length_interval"]) == (2.0, 4)
    cifar = published_training("cifar", size=32)
    assert (cifar["mixing"], cifar["path_length"], cifar["r1"]) == (0.0, 0.0, 0.01)
    assert (cifar["ema_images"], cifar["ema_rampup"]) == (500_000, 0.05)
    # auto: gamma = 0.0002 size^2 / batch, batch 4096 / size a GPU, at most 32 a GPU and 64 together
    one, eight = (published_training("auto", size=256, gpus=gpus) for gpus in (1, 8))
    assert (one["batch_size"], eight["batch_size"]) == (16, 64)
    assert one["r1"] == pytest.approx(0.8192)
    assert eight["ema_images"] == 20_000
    assert published_architecture("auto", size=1024, gpus=2).group == 4
    assert published_architecture("auto", size=256, gpus=64).group == 1
