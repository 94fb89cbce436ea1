"""Published networks become priors with the same values; another layout is named and refused."""

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
from inversight.priors.stylegan2_import import configuration_name, import_published
from tests.priors.stylegan2_files import (
    Persistent,
    persistent_discriminator,
    persistent_generator,
    pickled,
    published_file,
    random_prior,
)

SMALL = Architecture(
    size=16,
    z_dim=6,
    w_dim=5,
    mapping_depth=2,
    channel_base=64,
    channel_max=8,
    half_resolutions=1,
    conv_clamp=256.0,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ffhq.pkl"


def write(path: Path, value: Any) -> Path:
    path.write_bytes(pickled(value))
    return path


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
def test_a_prior_comes_back_from_its_published_file(path: Path, changes: dict[str, Any]) -> None:
    prior = random_prior(replace(SMALL, **changes))
    found = import_published(write(path, published_file(prior))).prior
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


def test_the_facts_say_where_it_came_from(path: Path) -> None:
    facts = import_published(write(path, published_file(random_prior(SMALL)))).facts
    assert facts["source"] == "ffhq.pkl"
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts["classes"] == {"G": "Generator", "D": "Discriminator", "G_ema": "Generator"}
    assert (facts["configuration"], facts["image_shape"]) == ("custom", [3, 16, 16])
    assert facts["training_set"] == {"path": "faces.zip", "xflip": True}
    assert json.loads(json.dumps(dict(facts), allow_nan=False)) == facts


@pytest.mark.parametrize(
    ("name", "size"), [("paper256", 256), ("stylegan2", 512), ("cifar", 32), ("auto", 64)]
)
def test_published_configurations_are_recognised(name: Any, size: int) -> None:
    architecture = published_architecture(name, size=size)
    assert configuration_name(architecture) == name
    assert configuration_name(replace(architecture, half_resolutions=0, conv_clamp=None)) == name
    assert configuration_name(replace(architecture, w_dim=100)) == "custom"


def test_training_goes_on_as_the_authors_do(path: Path) -> None:
    """train.py --cfg=auto --resume on one GPU."""
    training = import_published(write(path, published_file(random_prior(SMALL)))).prior.training
    assert training.batch_size == 32 and training.learning_rate == 0.0025
    assert training.ada_images == 100_000 and training.noise
    assert training.r1 == pytest.approx(0.0002 * 16**2 / 32)


def test_arguments_of_the_other_repository(path: Path) -> None:
    """stylegan3's StyleGAN2 has the synthesis network's arguments beside the generator's own."""
    prior = random_prior(SMALL)
    made = persistent_generator(prior.average, channel_base=64, fused_modconv_default=True)
    own = made.meta["state"]["_init_kwargs"]
    own.update(own.pop("synthesis_kwargs"))
    found = import_published(write(path, published_file(prior, G_ema=made))).prior
    assert found.average.architecture == SMALL


def test_parameters_of_frozen_layers_are_buffers(path: Path) -> None:
    """With --freezed the discriminator's first layers hold their weights as buffers."""
    prior = random_prior(SMALL)
    made = persistent_discriminator(prior.critic, SMALL)
    layer = made.meta["state"]["_modules"]["b16"].meta["state"]["_modules"]["fromrgb"].meta["state"]
    layer["_buffers"] = {
        **{k: v.data for k, v in layer["_parameters"].items()},
        **layer["_buffers"],
    }
    layer["_parameters"] = {}
    found = import_published(write(path, published_file(prior, D=made))).prior
    assert torch.equal(found.critic.b16.fromrgb.weight, prior.critic.b16.fromrgb.weight)


def changed(prior: StylePrior, **arguments: Any) -> dict[str, Any]:
    return published_file(prior, G_ema=persistent_generator(prior.average, **arguments))


def stylegan3(prior: StylePrior) -> dict[str, Any]:
    """As much of it as is looked at: other arguments, other modules, arrays among its attributes."""
    layer = Persistent("SynthesisLayer", {"in_size": np.array([36, 36])})
    synthesis = Persistent("SynthesisNetwork", {"_modules": {"L0_36_512": layer}})
    kwargs = {"z_dim": 512, "img_resolution": 256, "magnitude_ema_beta": 0.99}
    made = Persistent("Generator", {"_init_kwargs": kwargs, "_modules": {"synthesis": synthesis}})
    return published_file(prior, G=made, G_ema=made)


def without_parameter(prior: StylePrior) -> dict[str, Any]:
    made = persistent_generator(prior.raw)
    mapping = made.meta["state"]["_modules"]["mapping"].meta["state"]["_modules"]
    del mapping["fc1"].meta["state"]["_parameters"]["bias"]
    return published_file(prior, G=made)


def with_more(prior: StylePrior) -> dict[str, Any]:
    made = persistent_discriminator(prior.critic, SMALL)
    made.meta["state"]["_buffers"] = {"more": torch.ones(2)}
    return published_file(prior, D=made)


def of_another_size(prior: StylePrior) -> dict[str, Any]:
    other = random_prior(replace(SMALL, channel_max=4))
    return published_file(prior, D=persistent_discriminator(other.critic, SMALL))


def attribute(prior: StylePrior, path: str, value: Any) -> dict[str, Any]:
    """``prior``'s file with an attribute of the average's changed, or left out if None."""
    made = persistent_generator(prior.average)
    *modules, name = path.split(".")
    state = made.meta["state"]
    for module in modules:
        state = state["_modules"][module].meta["state"]
    state[name] = value
    if value is None:
        del state[name]
    return published_file(prior, G_ema=made)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (stylegan3, "G has the setting magnitude_ema_beta"),
        (lambda p: changed(p, embed=1), "G_ema has the setting embed"),
        (lambda p: changed(p, mapping_kwargs={"depth": 1}), "G_ema has the setting mapping_kwargs.depth"),
        (lambda p: changed(p, mapping_kwargs=[1]), "no settings in mapping_kwargs"),
        (
            lambda p: changed(p, mapping_kwargs={"activation": "relu"}),
            "the activation relu, expected lrelu",
        ),
        (without_parameter, "G has no mapping.fc1.bias"),
        (with_more, "D has more"),
        (of_another_size, "D has b16.conv1.bias of (4,), expected (8,)"),
        (
            lambda p: published_file(p, D=persistent_generator(p.average)),
            "D is of class Generator, expected Discriminator",
        ),
        (lambda p: attribute(p, "img_resolution", 24), "does not say its synthesis.b24"),
        (lambda p: attribute(p, "img_channels", 4), "4 channels, expected 1 or 3"),
        (lambda p: attribute(p, "z_dim", "many"), "z_dim"),
        (lambda p: attribute(p, "z_dim", 7), "G has mapping.fc0.weight of (5, 6), expected (5, 7)"),
        (lambda p: attribute(p, "z_dim", 10**30), "beyond any network's"),
        (lambda p: attribute(p, "mapping.num_layers", 10**9), "more layers than parameters"),
        (lambda p: attribute(p, "mapping.w_avg_beta", None), "does not say its mapping.w_avg_beta"),
        (lambda p: attribute(p, "synthesis.b16.conv1.conv_clamp", 64), "G_ema clamps at 64"),
        (lambda p: attribute(p, "mapping.fc0.bias_gain", float("inf")), "not say its mapping.fc0"),
        (lambda p: attribute(p, "synthesis.b16.architecture", "dense"), "generator"),
    ],
)  # fmt: skip
def test_another_layout_is_named(path: Path, change: Any, part: str) -> None:
    write(path, change(random_prior(SMALL)))
    with pytest.raises(DataError) as caught:
        import_published(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: not the layout of StyleGAN2-ADA's networks: ")
    assert part in message and "\n" not in message


def test_no_network_is_built_larger_than_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, changed(random_prior(SMALL), synthesis_kwargs={"channel_base": 2**30}))
    devices = []
    build = Generator.__init__

    def noting(self: Generator, architecture: Architecture) -> None:
        build(self, architecture)
        devices.append(next(self.parameters()).device.type)

    monkeypatch.setattr(Generator, "__init__", noting)
    with pytest.raises(DataError, match="expected"):
        import_published(path)
    assert set(devices) == {"meta"}
