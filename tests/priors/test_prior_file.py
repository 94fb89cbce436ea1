"""Priors made before: what is read, what does not fit, and how many images are few."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inversight.core.errors import DataError
from inversight.core.seeding import generator
from inversight.priors import StylePrior
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

SMALL = Architecture(
    size=8, channels=1, z_dim=4, w_dim=4, mapping_depth=1, channel_base=16, channel_max=2
)


@pytest.fixture
def prior() -> StylePrior:
    return random_prior(SMALL)


def test_a_folder_or_its_file(prior: StylePrior, tmp_path: Path) -> None:
    prior.save(tmp_path / PRIOR_FILE)
    one, other = read_prior(tmp_path), read_prior(tmp_path / PRIOR_FILE)
    assert one.file == other.file == tmp_path / PRIOR_FILE
    w = prior.sample(2, rng=generator(0))
    assert torch.equal(one.prior(w), prior(w))
    assert one.fingerprint == other.fingerprint
    random_prior(SMALL, seed=1).save(tmp_path / PRIOR_FILE)
    assert read_prior(tmp_path).fingerprint != one.fingerprint


def test_what_is_no_prior(tmp_path: Path) -> None:
    (tmp_path / "ffhq.pkl").write_bytes(b"\x80\x04N.")
    (tmp_path / "notes.txt").write_text("mine")
    for name, message in (
        ("nowhere", "no such prior"),
        ("", "no such prior"),
        ("ffhq.pkl", "inversight prior import"),
        ("notes.txt", "not a prior that inversight wrote"),
    ):
        with pytest.raises(DataError, match=message):
            read_prior(tmp_path / name)


def test_colour_and_grey_do_not_fit(prior: StylePrior) -> None:
    check_channels(prior, Path("p"), 1, "the images", "do")
    with pytest.raises(DataError) as caught:
        check_channels(prior, Path("p"), 3, "the images", "save them in grey")
    assert str(caught.value) == (
        "--prior p: its images have 1 channel (grey), the images 3 channels (colour): save them in "
        "grey"
    )


def test_a_prior_of_classes_cannot_be_adapted(prior: StylePrior) -> None:
    check_adaptable(prior, Path("p"))
    with pytest.raises(DataError, match=r"conditioned on 5 classes.*adaptation\.steps=0"):
        check_adaptable(random_prior(replace(SMALL, c_dim=5)), Path("p"))


def test_few_images_are_warned_of() -> None:
    assert few_images(FEW_IMAGES) is None
    warning = few_images(FEW_IMAGES - 1)
    assert warning is not None and "1999 images" in warning and "Karras et al. 2020" in warning
