"""The prior as attacks see it: samples, truncation, its file."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from inversight.core.errors import DataError, InputError
from inversight.core.seeding import generator
from inversight.priors import (
    Architecture,
    Critic,
    Intermediate,
    Prior,
    StylePrior,
    Truncatable,
    continue_training,
    train_prior,
)
from inversight.priors.stylegan2 import Discriminator, Generator, initialise
from inversight.settings import PriorTraining

TRAINING = PriorTraining(steps=4, batch_size=4, width=2, z_dim=6, w_dim=5)
PUBLIC = torch.randint(0, 256, (12, 1, 8, 8), generator=generator(0)).to(torch.uint8)


@pytest.fixture(scope="module")
def prior() -> StylePrior:
    return train_prior(PUBLIC, training=TRAINING, rng=generator(1))


def test_is_a_truncatable_prior(prior: StylePrior) -> None:
    assert isinstance(prior, Prior) and isinstance(prior, Truncatable)
    assert prior.image_shape == (1, 8, 8)


def test_a_latent_is_an_image(prior: StylePrior) -> None:
    w = prior.sample(5, rng=generator(2))
    assert w.shape == (5, 5)
    images = prior(w)
    assert images.shape == (5, 1, 8, 8)
    assert float(images.min()) >= 0.0 and float(images.max()) <= 1.0
    assert torch.equal(images, prior(w))
    torch.testing.assert_close(images[1:2], prior(w[1:2]))


def test_the_critic_judges_each_image_by_itself(prior: StylePrior) -> None:
    assert isinstance(prior, Critic)
    images = prior(prior.sample(6, rng=generator(2)))
    found = prior.realness(images)
    assert found.shape == (6,) and len(found.unique()) == 6
    for i in range(6):
        torch.testing.assert_close(prior.realness(images[i : i + 1]), found[i : i + 1])
        # As the critic sees a group of copies, which has no spread.
        copies = images[i : i + 1].expand(4, -1, -1, -1) * 2 - 1
        torch.testing.assert_close(prior.critic(copies)[:1], found[i : i + 1])
    x = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(prior.realness(x).sum(), x)
    assert bool((gradient.flatten(1).abs().sum(1) > 0).all())


@pytest.mark.parametrize("kind", ["skip", "resnet", "orig"])
def test_stops_between_blocks_and_goes_on(kind: str) -> None:
    architecture = Architecture(
        size=32, channels=3, z_dim=6, w_dim=5, mapping_depth=2, channel_base=64, generator=kind
    )
    network = Generator(architecture)
    initialise(network, generator(1))
    made = StylePrior(
        average=network.requires_grad_(False),
        raw=network,
        critic=Discriminator(architecture),
        training=PriorTraining(),
        image_shape=architecture.image_shape,
    )
    assert isinstance(made, Intermediate) and made.blocks == 4
    for w in (made.sample(3, rng=generator(2)), made.truncated(0.5, 2).sample(3, rng=generator(2))):
        whole = made(w)
        once = [made.until(block, w) for block in (1, 2, 3)]
        for block, halfway in enumerate(once, start=1):
            size = 2 * 2**block
            assert halfway.block == block and halfway.features.shape[-2:] == (size, size)
            assert torch.equal(made.finish(halfway, w), whole)
        further = made.until(3, w, once[0])
        assert torch.equal(further.features, once[2].features)
        changed = replace(once[1], features=(2.0 * once[1].features).requires_grad_(True))
        images = made.finish(changed, w)
        assert not torch.equal(images, whole)
        (gradient,) = torch.autograd.grad(images.sum(), changed.features)
        assert bool(gradient.abs().sum() > 0)
        for block in (0, 2, 5):
            with pytest.raises(ValueError, match=r"expected a block in 3\.\.4"):
                made.until(block, w, once[1])


def test_samples_belong_to_the_generator(prior: StylePrior) -> None:
    assert torch.equal(prior.sample(3, rng=generator(2)), prior.sample(3, rng=generator(2)))
    assert not torch.equal(prior.sample(3, rng=generator(2)), prior.sample(3, rng=generator(3)))


def test_truncation_is_a_line_to_the_mean(prior: StylePrior) -> None:
    mean = prior.average.mapping.w_avg
    full = prior.sample(4, rng=generator(2))
    half = prior.truncated(0.5).sample(4, rng=generator(2))
    none = prior.truncated(0.0).sample(4, rng=generator(2))
    torch.testing.assert_close(half, mean + 0.5 * (full - mean))
    torch.testing.assert_close(none, mean.expand(4, -1))


def test_a_cutoff_truncates_the_first_layers_alone(prior: StylePrior) -> None:
    full = prior.sample(4, rng=generator(2))
    ws = prior.truncated(0.5, cutoff=1).sample(4, rng=generator(2))
    assert ws.shape == (4, prior.average.num_ws, 5)
    torch.testing.assert_close(ws[:, 1:], full[:, None].expand_as(ws[:, 1:]))
    assert torch.equal(ws[:, 0], prior.truncated(0.5).sample(4, rng=generator(2)))
    assert prior(ws).shape == (4, 1, 8, 8)
    every = prior.truncated(0.5, cutoff=prior.average.num_ws)
    assert every.sample(4, rng=generator(2)).shape == (4, 5)


def test_networks_from_elsewhere(tmp_path: Path) -> None:
    """Of another architecture than the settings would build, conditioned on classes."""
    architecture = Architecture(
        size=16,
        channels=3,
        z_dim=6,
        w_dim=5,
        c_dim=3,
        mapping_depth=2,
        channel_base=32,
        noise=False,
    )
    generate, judge = Generator(architecture), Discriminator(architecture)
    initialise(generate, generator(1))
    initialise(judge, generator(2))
    made = StylePrior(
        average=generate.requires_grad_(False),
        raw=copy.deepcopy(generate),
        critic=judge.requires_grad_(False),
        training=PriorTraining(),
        image_shape=architecture.image_shape,
    )
    made.save(tmp_path / "prior.safetensors")
    again = StylePrior.load(tmp_path / "prior.safetensors")
    assert again.average.architecture == again.critic.architecture == architecture
    assert again.image_shape == (3, 16, 16)
    w = made.sample(64, rng=generator(2))
    assert torch.equal(w, again.sample(64, rng=generator(2)))
    assert torch.equal(made(w[:3]), again(w[:3]))
    with pytest.raises(InputError, match="judges images with their classes"):
        made.realness(made(w[:3]))
    # Classes are drawn as well: latents are those of z and one of the three classes.
    z = torch.randn(64, 6, generator=generator(2))
    choices = torch.stack([generate.mapping(z, c.expand(64, -1)) for c in torch.eye(3)])
    nearest = (choices - w).abs().amax(2).min(0)
    assert float(nearest.values.max()) < 1e-6
    assert set(nearest.indices.tolist()) == {0, 1, 2}


def test_play_keeps_the_architecture() -> None:
    architecture = Architecture(
        size=8, channels=1, z_dim=6, w_dim=5, mapping_depth=2, channel_base=16
    )
    raw, critic = Generator(architecture), Discriminator(architecture)
    initialise(raw, generator(1))
    initialise(critic, generator(2))
    start = StylePrior(
        average=copy.deepcopy(raw),
        raw=raw,
        critic=critic,
        training=TRAINING,
        image_shape=architecture.image_shape,
    )
    further = continue_training(
        PUBLIC,
        training=TRAINING,
        start=start,
        steps=1,
        learning_rate_factor=1.0,
        guidance=None,
        rng=generator(3),
    )
    assert further.raw.architecture == further.critic.architecture == architecture


def test_the_file_gives_the_prior_back(prior: StylePrior, tmp_path: Path) -> None:
    prior.save(tmp_path / "prior.safetensors")
    again = StylePrior.load(tmp_path / "prior.safetensors")
    w = prior.sample(3, rng=generator(2))
    assert torch.equal(prior(w), again(w))
    x = prior(w) * 2 - 1
    assert torch.equal(prior.critic(x), again.critic(x))
    assert torch.equal(prior.raw(w), again.raw(w))
    assert (again.training, again.log, again.augmentation) == (
        prior.training,
        prior.log,
        prior.augmentation,
    )


def test_training_repeats(prior: StylePrior) -> None:
    again = train_prior(PUBLIC, training=TRAINING, rng=generator(1))
    w = prior.sample(3, rng=generator(2))
    assert torch.equal(prior(w), again(w))
    assert prior.log == again.log and [row["step"] for row in prior.log] == [1, 2, 3, 4]


def test_play_goes_on_from_the_prior(prior: StylePrior) -> None:
    before = {k: v.clone() for k, v in prior.raw.state_dict().items()}
    further = continue_training(
        PUBLIC,
        training=TRAINING,
        start=prior,
        steps=2,
        learning_rate_factor=1.0,
        guidance=None,
        rng=generator(3),
    )
    assert all(torch.equal(v, prior.raw.state_dict()[k]) for k, v in before.items())
    still = continue_training(
        PUBLIC,
        training=TRAINING,
        start=prior,
        steps=1,
        learning_rate_factor=1e-12,
        guidance=None,
        rng=generator(3),
    )
    w = prior.sample(3, rng=generator(2))
    torch.testing.assert_close(still.raw(w), prior.raw(w))
    # The moving average goes on with its half-life; a ramp-up would have made it the raw generator.
    keep = 0.5 ** (TRAINING.batch_size / TRAINING.ema_images)
    for name, value in still.average.named_parameters():
        one, other = prior.average.get_parameter(name), prior.raw.get_parameter(name)
        torch.testing.assert_close(value, keep * one + (1 - keep) * other)
    assert not torch.allclose(further.raw(w), prior.raw(w), atol=1e-6)


@pytest.mark.parametrize("damage", ["missing", "text", "foreign", "shape"])
def test_wrong_files(prior: StylePrior, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "prior.safetensors"
    if damage == "text":
        file.write_text("no prior")
    elif damage == "foreign":
        save_file({"x": torch.zeros(1)}, file)
    elif damage == "shape":
        facts = {
            "training": {},
            "architecture": {"size": 8, "channels": 1, "channel_base": 24},
            "augmentation": 0.0,
            "log": [],
        }
        tensors = {f"raw/{k}": v.contiguous() for k, v in prior.raw.state_dict().items()}
        save_file(tensors, file, metadata={"inversight.prior": json.dumps(facts)})
    with pytest.raises(DataError, match="not a prior that inversight wrote"):
        StylePrior.load(file)
