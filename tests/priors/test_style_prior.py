"""The prior as attacks use it: samples, truncation, its file, and the training that goes on from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from inversight.core.errors import DataError, InputError
from inversight.core.seeding import generator
from inversight.priors import StylePrior, base, continue_training, train_prior
from inversight.priors.architecture import Architecture
from inversight.priors.prior_file import (
    FEW_IMAGES,
    PRIOR_FILE,
    check_adaptable,
    check_channels,
    few_images,
    read_prior,
)
from tests.priors.stylegan2_files import random_prior
from tests.priors.tiny import PUBLIC, SHAPE, TRAINING, assert_equal, assert_same

SMALL = Architecture(size=8, channels=1, z_dim=6, w_dim=5, mapping_depth=2, channel_base=16)


def continued(prior: StylePrior, **options: Any) -> StylePrior:
    given: dict[str, Any] = {"steps": 1, "learning_rate_factor": 1.0, "guidance": None} | options
    return continue_training(PUBLIC, training=TRAINING, start=prior, rng=generator(3), **given)


INTERFACES = ("Prior", "Truncatable", "Critic", "Pivoted", "Conditional", "Intermediate")


def test_has_all_interfaces(prior: StylePrior) -> None:
    assert all(isinstance(prior, getattr(base, name)) for name in INTERFACES)
    assert prior.image_shape == SHAPE


def test_makes_an_image_of_each_latent(prior: StylePrior) -> None:
    w = prior.sample(5, rng=generator(2))
    assert w.shape == (5, 5)
    images = prior(w)
    assert images.shape == (5, *SHAPE)
    assert float(images.min()) >= 0.0 and float(images.max()) <= 1.0
    assert torch.equal(images, prior(w))
    torch.testing.assert_close(images[1:2], prior(w[1:2]))


def test_judges_each_image_independently(prior: StylePrior) -> None:
    images = prior(prior.sample(6, rng=generator(2)))
    found = prior.realness(images)
    assert found.shape == (6,) and len(found.unique()) == 6
    for image, logit in zip(images[:, None], found[:, None], strict=True):
        torch.testing.assert_close(prior.realness(image), logit)
        # As the critic sees a group of copies, which has no spread.
        copies = image.expand(4, -1, -1, -1) * 2 - 1
        torch.testing.assert_close(prior.critic(copies)[:1], logit)
    x = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(prior.realness(x).sum(), x)
    assert bool((gradient.flatten(1).abs().sum(1) > 0).all())


@pytest.mark.parametrize("kind", ["skip", "resnet", "orig"])
def test_stops_between_blocks_and_goes_on(kind: str) -> None:
    prior = random_prior(replace(SMALL, size=32, channels=3, channel_base=64, generator=kind))
    assert prior.blocks == 4
    for truncated in (prior, prior.truncated(0.5, 2)):
        w = truncated.sample(3, rng=generator(2))
        whole = prior(w)
        stopped = [prior.until(block, w) for block in (1, 2, 3)]
        for block, start in enumerate(stopped, start=1):
            size = 2 * 2**block
            assert start.block == block and start.features.shape[-2:] == (size, size)
            assert torch.equal(prior.finish(start, w), whole)
        further = prior.until(3, w, stopped[0])
        assert torch.equal(further.features, stopped[2].features)
        changed = replace(stopped[1], features=(2.0 * stopped[1].features).requires_grad_(True))
        images = prior.finish(changed, w)
        assert not torch.equal(images, whole)
        (gradient,) = torch.autograd.grad(images.sum(), changed.features)
        assert bool(gradient.abs().sum() > 0)
        for block in (0, 2, 5):
            with pytest.raises(ValueError, match=r"expected a block in 3\.\.4"):
                prior.until(block, w, stopped[1])


def test_samples_depend_on_the_generator(prior: StylePrior) -> None:
    first, same, other = (prior.sample(3, rng=generator(seed)) for seed in (2, 2, 3))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_truncation_is_a_line_to_the_mean(prior: StylePrior) -> None:
    mean = prior.average.mapping.w_avg
    full, half, none = (prior.truncated(psi).sample(4, rng=generator(2)) for psi in (1.0, 0.5, 0.0))
    torch.testing.assert_close(half, mean + 0.5 * (full - mean))
    torch.testing.assert_close(none, mean.expand(4, -1))


def test_a_cutoff_truncates_the_first_layers_only(prior: StylePrior) -> None:
    full = prior.sample(4, rng=generator(2))
    ws = prior.truncated(0.5, cutoff=1).sample(4, rng=generator(2))
    assert ws.shape == (4, prior.average.num_ws, 5)
    torch.testing.assert_close(ws[:, 1:], full[:, None].expand_as(ws[:, 1:]))
    assert torch.equal(ws[:, 0], prior.truncated(0.5).sample(4, rng=generator(2)))
    assert prior(ws).shape == (4, *SHAPE)
    every = prior.truncated(0.5, cutoff=prior.average.num_ws)
    assert every.sample(4, rng=generator(2)).shape == (4, 5)


def test_networks_of_another_architecture_than_the_settings_give(tmp_path: Path) -> None:
    architecture = replace(SMALL, size=16, channels=3, c_dim=3, channel_base=32, noise=False)
    prior = random_prior(architecture)
    prior.save(tmp_path / "prior.safetensors")
    again = StylePrior.load(tmp_path / "prior.safetensors")
    assert again.average.architecture == again.critic.architecture == architecture
    assert again.image_shape == (3, 16, 16)
    w = prior.sample(64, rng=generator(2))
    assert torch.equal(w, again.sample(64, rng=generator(2)))
    assert torch.equal(prior(w[:3]), again(w[:3]))
    with pytest.raises(InputError, match="judges images with their classes"):
        prior.realness(prior(w[:3]))
    # Classes are drawn as well: latents are those of z and one of the three classes.
    z = torch.randn(64, 6, generator=generator(2))
    choices = torch.stack([prior.average.mapping(z, c.expand(64, -1)) for c in torch.eye(3)])
    nearest = (choices - w).abs().amax(2).min(0)
    assert float(nearest.values.max()) < 1e-6
    assert set(nearest.indices.tolist()) == {0, 1, 2}


def test_further_training_keeps_the_architecture() -> None:
    further = continued(random_prior(SMALL))
    assert further.raw.architecture == further.critic.architecture == SMALL


def test_reads_back_what_it_saved(prior: StylePrior, tmp_path: Path) -> None:
    prior.save(tmp_path / "prior.safetensors")
    again = StylePrior.load(tmp_path / "prior.safetensors")
    assert_equal(again, prior)
    assert (again.training, again.augmentation) == (prior.training, prior.augmentation)


def test_the_same_seed_trains_the_same_prior(prior: StylePrior) -> None:
    assert_equal(train_prior(PUBLIC, training=TRAINING, rng=generator(1)), prior)
    assert [row["step"] for row in prior.log] == list(range(1, 11))


def test_further_training_begins_with_the_prior(prior: StylePrior) -> None:
    before = {k: v.clone() for k, v in prior.raw.state_dict().items()}
    further = continued(prior, steps=2)
    assert_same(before, prior.raw.state_dict())
    still = continued(prior, learning_rate_factor=1e-12)
    w = prior.sample(3, rng=generator(2))
    torch.testing.assert_close(still.raw(w), prior.raw(w))
    # The moving average keeps its half-life; a ramp-up would have made it the raw generator.
    keep = 0.5 ** (TRAINING.batch_size / TRAINING.ema_images)
    for name, value in still.average.named_parameters():
        one, other = prior.average.get_parameter(name), prior.raw.get_parameter(name)
        torch.testing.assert_close(value, keep * one + (1 - keep) * other)
    assert not torch.allclose(further.raw(w), prior.raw(w), atol=1e-6)


EMPTY = {"training": {}, "architecture": {"size": 8}, "augmentation": 0.0, "log": []}


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"no prior",
        save({"x": torch.zeros(1)}),
        save({"x": torch.zeros(1)}, {"inversight.prior": json.dumps(EMPTY)}),
    ],
    ids=["missing", "text", "foreign", "other networks"],
)
def test_rejects_other_files(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "prior.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match="not a prior that inversight wrote"):
        StylePrior.load(file)


# Saved priors as a command line names them


def test_reads_a_folder_or_its_file(prior: StylePrior, tmp_path: Path) -> None:
    file = tmp_path / PRIOR_FILE
    prior.save(file)
    one, other = read_prior(tmp_path), read_prior(file)
    assert one.file == other.file == file
    w = prior.sample(2, rng=generator(0))
    assert torch.equal(one.prior(w), prior(w))
    assert one.fingerprint == other.fingerprint
    random_prior(SMALL).save(file)
    assert read_prior(tmp_path).fingerprint != one.fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such prior"),
        ("", "no such prior"),
        ("ffhq.pkl", "inversight prior import"),
        ("notes.txt", "not a prior that inversight wrote"),
    ],
)
def test_rejects_what_is_no_prior(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "ffhq.pkl").write_bytes(b"\x80\x04N.")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=message):
        read_prior(tmp_path / name)


def test_rejects_other_channels(prior: StylePrior) -> None:
    check_channels(prior, Path("p"), 1, "the images", "do")
    with pytest.raises(DataError) as caught:
        check_channels(prior, Path("p"), 3, "the images", "save them in grey")
    assert str(caught.value) == (
        "--prior p: its images have 1 channel (grey), the images 3 channels (colour): save them in "
        "grey"
    )


def test_rejects_adaptation_of_a_conditional_prior(prior: StylePrior) -> None:
    check_adaptable(prior, Path("p"))
    with pytest.raises(DataError, match=r"conditioned on 5 classes.*adaptation\.steps=0"):
        check_adaptable(random_prior(replace(SMALL, c_dim=5)), Path("p"))


def test_warns_of_few_images() -> None:
    assert few_images(FEW_IMAGES) is None
    warning = few_images(FEW_IMAGES - 1)
    assert warning is not None and "1999 images" in warning and "Karras et al. 2020" in warning
