"""Published networks are imported with the same values; another layout is named and rejected."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inversight.core.errors import DataError
from inversight.core.seeding import generator
from inversight.priors import StylePrior
from inversight.priors.architecture import Architecture, published_architecture
from inversight.priors.stylegan2 import Generator
from inversight.priors.stylegan2_import import ImportedPrior, configuration_name, import_published
from tests.priors.stylegan2_files import (
    Persistent,
    persistent_discriminator,
    persistent_generator,
    pickled,
    published_file,
    random_prior,
    state_of,
)

SMALL = Architecture(
    size=16, z_dim=6, w_dim=5, mapping_depth=2, channel_base=64, channel_max=8,
    half_resolutions=1, conv_clamp=256.0,
)  # fmt: skip
PRIOR = random_prior(SMALL)


def imported(path: Path, prior: StylePrior = PRIOR, **parts: Any) -> ImportedPrior:
    path.write_bytes(pickled(published_file(prior, **parts)))
    return import_published(path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channels": 1, "discriminator": "orig", "mapping_rate": 0.02, "w_avg_beta": 0.998},
        {"generator": "resnet", "discriminator": "skip", "half_resolutions": 0, "conv_clamp": None},
        {"generator": "orig", "noise": False, "group": None, "half_resolutions": 2},
        # A file without the layer of the standard deviation does not say its group.
        {"c_dim": 3, "cmap_dim": 4, "cmap_depth": 1, "group_channels": 0, "group": None},
        {"filter_taps": (1.0, 2.0, 1.0), "group": 2, "group_channels": 2},
    ],
    ids=lambda changes: "-".join(changes) or "default",
)
def test_imports_a_prior_with_the_same_values(path: Path, changes: dict[str, Any]) -> None:
    prior = random_prior(replace(SMALL, **changes))
    found = imported(path, prior).prior
    assert found.average.architecture == prior.average.architecture
    assert found.image_shape == prior.image_shape and found.augmentation == 0.25
    for name in ("raw", "average", "critic"):
        one, other = getattr(prior, name).state_dict(), getattr(found, name).state_dict()
        assert list(one) == list(other)
        assert all(torch.equal(one[k], other[k]) for k in one)
    w = found.sample(3, rng=generator(1))
    assert torch.equal(w, prior.sample(3, rng=generator(1)))
    assert torch.equal(found.average(w, noise="const"), prior.average(w, noise="const"))
    found.save(path.with_name("prior.safetensors"))
    again = StylePrior.load(path.with_name("prior.safetensors"))
    assert torch.equal(again(w), found(w))


def test_facts_name_the_source(path: Path) -> None:
    facts = imported(path).facts
    assert facts["source"] == path.name
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts["classes"] == {"G": "Generator", "D": "Discriminator", "G_ema": "Generator"}
    assert (facts["configuration"], facts["image_shape"]) == ("custom", [3, 16, 16])
    assert facts["training_set"] == {"path": "faces.zip", "xflip": True}
    assert json.loads(json.dumps(dict(facts), allow_nan=False)) == facts


@pytest.mark.parametrize(
    ("name", "size"), [("paper256", 256), ("stylegan2", 512), ("cifar", 32), ("auto", 64)]
)
def test_recognises_published_configurations(name: Any, size: int) -> None:
    architecture = published_architecture(name, size=size)
    assert configuration_name(architecture) == name
    assert configuration_name(replace(architecture, half_resolutions=0, conv_clamp=None)) == name
    assert configuration_name(replace(architecture, w_dim=100)) == "custom"


def test_training_continues_with_the_authors_settings(path: Path) -> None:
    """train.py --cfg=auto --resume on one GPU."""
    training = imported(path).prior.training
    assert (training.batch_size, training.learning_rate) == (32, 0.0025)
    assert (training.ada_images, training.noise) == (100_000, True)
    assert training.r1 == pytest.approx(0.0002 * 16**2 / 32)


def test_reads_arguments_of_the_other_repository(path: Path) -> None:
    """stylegan3's StyleGAN2 has the synthesis network's arguments beside the generator's own."""
    made = persistent_generator(PRIOR.average, channel_base=64, fused_modconv_default=True)
    own = state_of(made)["_init_kwargs"]
    own.update(own.pop("synthesis_kwargs"))
    assert imported(path, G_ema=made).prior.average.architecture == SMALL


def test_reads_parameters_of_frozen_layers(path: Path) -> None:
    """With --freezed the discriminator's first layers hold their weights as buffers."""
    made = persistent_discriminator(PRIOR.critic)
    layer = state_of(made, "b16.fromrgb")
    frozen = {name: value.data for name, value in layer.pop("_parameters").items()}
    layer["_buffers"] = frozen | layer["_buffers"]
    found = imported(path, D=made).prior.critic.b16
    assert torch.equal(found.fromrgb.weight, PRIOR.critic.b16.fromrgb.weight)


Parts = dict[str, Persistent]


def arguments(**changed: Any) -> Parts:
    """Return the average with other arguments."""
    return {"G_ema": persistent_generator(PRIOR.average, **changed)}


def attribute(path: str, value: Any, network: str = "G_ema") -> Parts:
    """Return a network with an attribute changed, or left out if ``value`` is None."""
    critic = network == "D"
    made = persistent_discriminator(PRIOR.critic) if critic else persistent_generator(PRIOR.average)
    module, _, name = path.rpartition(".")
    state_of(made, module)[name] = value
    if value is None:
        del state_of(made, module)[name]
    return {network: made}


def stylegan3() -> Parts:
    """Return the parts of it that are read: other arguments, other modules, arrays as attributes."""
    layer = Persistent("SynthesisLayer", {"in_size": np.array([36, 36])})
    synthesis = Persistent("SynthesisNetwork", {"_modules": {"L0_36_512": layer}})
    kwargs = {"z_dim": 512, "img_resolution": 256, "magnitude_ema_beta": 0.99}
    made = Persistent("Generator", {"_init_kwargs": kwargs, "_modules": {"synthesis": synthesis}})
    return {"G": made, "G_ema": made}


def without_parameter() -> Parts:
    made = persistent_generator(PRIOR.raw)
    layer = state_of(made, "mapping.fc1")
    layer["_parameters"] = {"weight": layer["_parameters"]["weight"]}
    return {"G": made}


def of_another_size() -> Parts:
    other = random_prior(replace(SMALL, channel_max=4))
    return {"D": persistent_discriminator(other.critic)}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (stylegan3(), "G has the setting magnitude_ema_beta"),
        (arguments(embed=1), "G_ema has the setting embed"),
        (arguments(mapping_kwargs={"depth": 1}), "G_ema has the setting mapping_kwargs.depth"),
        (arguments(mapping_kwargs=[1]), "no settings in mapping_kwargs"),
        (arguments(mapping_kwargs={"activation": "relu"}), "the activation relu, expected lrelu"),
        (without_parameter(), "G has no mapping.fc1.bias"),
        (attribute("_buffers", {"more": torch.ones(2)}, "D"), "D has more"),
        (of_another_size(), "D has b16.conv1.bias of (4,), expected (8,)"),
        ({"D": persistent_generator(PRIOR.average)}, "D is of class Generator, expected Discriminator"),
        (attribute("img_resolution", 24), "does not say its synthesis.b24"),
        (attribute("img_channels", 4), "4 channels, expected 1 or 3"),
        (attribute("z_dim", "many"), "z_dim"),
        (attribute("z_dim", 7), "G has mapping.fc0.weight of (5, 6), expected (5, 7)"),
        (attribute("z_dim", 10**30), "beyond any network's"),
        (attribute("mapping.num_layers", 10**9), "more layers than parameters"),
        (attribute("mapping.w_avg_beta", None), "does not say its mapping.w_avg_beta"),
        (attribute("synthesis.b16.conv1.conv_clamp", 64), "G_ema clamps at 64"),
        (attribute("mapping.fc0.bias_gain", float("inf")), "not say its mapping.fc0"),
        (attribute("synthesis.b16.architecture", "dense"), "generator"),
    ],
)  # fmt: skip
def test_names_another_layout(path: Path, change: Parts, part: str) -> None:
    with pytest.raises(DataError) as caught:
        imported(path, **change)
    message = str(caught.value)
    assert message.startswith(f"{path}: not the layout of StyleGAN2-ADA's networks: ")
    assert part in message and "\n" not in message


def test_builds_no_network_larger_than_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices, build = [], Generator.__init__

    def noting(self: Generator, architecture: Architecture) -> None:
        build(self, architecture)
        devices.append(next(self.parameters()).device.type)

    monkeypatch.setattr(Generator, "__init__", noting)
    with pytest.raises(DataError, match="expected"):
        imported(path, **arguments(synthesis_kwargs={"channel_base": 2**30}))
    assert set(devices) == {"meta"}
